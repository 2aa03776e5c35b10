// The Python module _C: the operators for eager calls, the C++ registry, and the allocator's controls.
//
// Each function turns its arguments into a Call and calls the operator; it decides nothing.
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/utils/pybind.h>

#include <deque>

#include "batch_norm/ops.h"
#include "cells/ops.h"
#include "epilogue/ops.h"
#include "gated/ops.h"
#include "linear/linear.h"
#include "maxout/ops.h"
#include "memory.h"
#include "softmax/ops.h"
#include "statistics/ops.h"

// The list of scalar parameters: a tuple or list of floats.
struct Params {
  c10::SmallVector<double, 4> values;
};

template <>
struct pybind11::detail::type_caster<Params> {
  PYBIND11_TYPE_CASTER(Params, const_name("tuple[float, ...]"));
  bool load(handle source, bool) {
    bool tuple = PyTuple_Check(source.ptr());
    if (!tuple && !PyList_Check(source.ptr())) return false;
    Py_ssize_t size = tuple ? PyTuple_GET_SIZE(source.ptr()) : PyList_GET_SIZE(source.ptr());
    for (Py_ssize_t i = 0; i < size; ++i) {
      double item = PyFloat_AsDouble(tuple ? PyTuple_GET_ITEM(source.ptr(), i) : PyList_GET_ITEM(source.ptr(), i));
      if (item == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
      }
      value.values.push_back(item);
    }
    return true;
  }
};

namespace fusedact {
namespace {

using String = std::string_view;
using OptDouble = std::optional<double>;

// Gives up the GIL for as long as an elementwise call takes, but where that is over before another thread could use it: giving
// it up and getting it back takes 0.06 us.
class Unlocked {
 public:
  explicit Unlocked(const Tensor& x) {
    if (x.unsafeGetTensorImpl()->has_symbolic_sizes_strides() || x.numel() > 4096) no_gil_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> no_gil_;
};

Tensor py_bias_act(const Tensor& input, const OptTensor& bias, const OptTensor& weight, String activation,
                   const Params& params, int64_t dim, double gain, OptDouble clamp_min, OptDouble clamp_max,
                   String save) {
  Unlocked unlocked(input);
  return bias_act(input, bias, weight, {activation, params.values, dim, gain, clamp_min, clamp_max, save});
}

py::object py_bias_act_inplace(const py::object& input, const OptTensor& bias, const OptTensor& weight,
                               String activation, const Params& params, int64_t dim, double gain, OptDouble clamp_min,
                               OptDouble clamp_max, String save) {
  auto tensor = input.cast<Tensor>();
  {
    Unlocked unlocked(tensor);
    bias_act_(tensor, bias, weight, {activation, params.values, dim, gain, clamp_min, clamp_max, save});
  }
  return input;
}

py::object py_bias_act_out(const Tensor& input, const OptTensor& bias, const OptTensor& weight, String activation,
                           const Params& params, int64_t dim, double gain, OptDouble clamp_min, OptDouble clamp_max,
                           String save, const py::object& out) {
  auto tensor = out.cast<Tensor>();
  {
    Unlocked unlocked(input);
    bias_act_out(input, bias, weight, {activation, params.values, dim, gain, clamp_min, clamp_max, save}, tensor);
  }
  return out;
}

// bias_act of one activation, for calls that say little more: five arguments take 0.14 us less to convert than ten.
py::cpp_function py_bias_act_of(std::string activation, const Params& params) {
  return [activation = std::move(activation), values = params.values](const Tensor& input, const OptTensor& bias,
                                                                      int64_t dim, double gain, String save) {
    Unlocked unlocked(input);
    return bias_act(input, bias, {}, {activation, values, dim, gain, {}, {}, save});
  };
}

Tensor py_bias_act_epilogue(const Tensor& input, const OptTensor& bias, const OptTensor& weight, const OptTensor& scale,
                            const OptTensor& residual, const OptTensor& seed, String activation, const Params& params,
                            int64_t dim, double gain, OptDouble clamp_min, OptDouble clamp_max, double dropout_p) {
  py::gil_scoped_release no_gil;
  return epilogue::bias_act_epilogue(input, {bias, weight, scale, seed}, residual,
                                     {activation, params.values, dim, gain, clamp_min, clamp_max, "input"}, dropout_p);
}

std::tuple<Tensor, Tensor, Tensor> py_batch_norm_act(const Tensor& input, const OptTensor& weight,
                                                     const OptTensor& bias, const OptTensor& act_weight, double eps,
                                                     String activation, const Params& params) {
  py::gil_scoped_release no_gil;
  return batch_norm::batch_norm_act(input, {weight, bias, act_weight}, {activation, params.values, eps});
}

Tensor py_linear_act(const Tensor& input, const Tensor& weight, const OptTensor& bias, const OptTensor& param,
                     String activation, const Params& params, double gain, OptDouble clamp_min, OptDouble clamp_max,
                     String save) {
  py::gil_scoped_release no_gil;
  return linear::linear_act(input, weight, bias, param,
                            {activation, params.values, -1, gain, clamp_min, clamp_max, save});
}

Tensor py_gated_act(const Tensor& input, const OptTensor& other, const OptTensor& bias, const OptTensor& other_bias,
                    String activation, const Params& params, int64_t dim, String gate, String layout, OptDouble limit,
                    double alpha, double offset) {
  py::gil_scoped_release no_gil;
  return gated_act({input, other, bias, other_bias},
                   {activation, params.values, dim, gate, layout, limit, alpha, offset});
}

Tensor py_bias_act_statistics(const Tensor& input, const OptTensor& bias, const OptTensor& weight, String activation,
                              const Params& params, int64_t dim, double gain, OptDouble clamp_min, OptDouble clamp_max,
                              String save, const Params& zones, const Tensor& sums, const Tensor& histogram,
                              const OptTensor& gradient) {
  py::gil_scoped_release no_gil;
  return bias_act_statistics(input, bias, weight, {activation, params.values, dim, gain, clamp_min, clamp_max, save},
                             {zones.values, sums, histogram}, gradient);
}

Tensor py_linear_act_statistics(const Tensor& input, const Tensor& weight, const OptTensor& bias,
                                const OptTensor& param, String activation, const Params& params, double gain,
                                OptDouble clamp_min, OptDouble clamp_max, String save, const Params& zones,
                                const Tensor& sums, const Tensor& histogram, const OptTensor& gradient) {
  py::gil_scoped_release no_gil;
  return std::get<0>(linear::linear_act_statistics(input, weight, bias, param,
                                                   {activation, params.values, -1, gain, clamp_min, clamp_max, save},
                                                   false, {zones.values, sums, histogram}, gradient));
}

void py_statistics_inplace(const Tensor& sums, const OptTensor& histogram, const OptTensor& input,
                           const OptTensor& bias, const OptTensor& output, int64_t dim, const Params& zones) {
  py::gil_scoped_release no_gil;
  statistics_(sums, histogram, input, bias, output, dim, zones.values);
}

py::list py_activations() {
  py::list rows;
  for (const Activation& a : activations()) {
    py::dict row;
    row["name"] = a.name;
    row["params"] = a.params;
    row["weight"] = a.weight;
    row["mask"] = a.masked;
    row["output"] = a.output;
    rows.append(std::move(row));
  }
  return rows;
}

// Null in a build for the CPU alone.
py::object py_cuda() {
#if defined(FUSEDACT_CUDA)
  py::dict facts;
  facts["architectures"] = cuda::architectures();
  facts["kernels"] = cuda::kernel_count();
  return std::move(facts);
#else
  return py::none();
#endif
}

py::dict py_memory_stats() {
  memory::Stats s = memory::stats();
  py::dict stats;
  stats["enabled"] = s.enabled;
  stats["cached_bytes"] = s.cached_bytes;
  stats["limit_bytes"] = s.limit_bytes;
  stats["threshold_bytes"] = s.threshold_bytes;
  stats["allocated_bytes"] = s.allocated_bytes;
  stats["hits"] = s.hits;
  stats["misses"] = s.misses;
  return stats;
}

// So that grad_fn shows as <BiasActBackward0 object at ...>, like those of torch.
void name_nodes() {
  static std::deque<PyTypeObject> types;  // which stay where they are
  for (const auto& family :
       {node_types(), epilogue::node_types(), batch_norm::node_types(), linear::node_types(), gated_node_types(),
        softmax_node_types(), maxout_node_types(), cell_node_types(), statistics_node_types()})
    for (const NodeType& node : family) {
      PyTypeObject& type = types.emplace_back();
      torch::autograd::_initFunctionPyTypeObject(type, node.name, nullptr, nullptr);
      torch::autograd::registerCppFunction(node.type, &type);
    }
}

// Calls an operator without the GIL.
template <auto op, class Result, class... Arguments>
auto released(Result (*)(Arguments...)) {
  return [](Arguments... arguments) -> Result {
    py::gil_scoped_release no_gil;
    return op(arguments...);
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::options options;
  options.disable_function_signatures();
  m.doc() = "fusedact's operators (importing torch first is the caller's duty)";

  name_nodes();
  m.def("bias_act", py_bias_act);
  m.def("bias_act_of", py_bias_act_of);
  m.def("bias_act_", py_bias_act_inplace);
  m.def("bias_act_out", py_bias_act_out);
  m.def("linear_act", py_linear_act);

  m.def("bias_act_epilogue", py_bias_act_epilogue);
  m.def("batch_norm_act", py_batch_norm_act);

  m.def("gated_act", py_gated_act);

  m.def("softmax", released<softmax>(softmax));
  m.def("maxout", released<maxout>(maxout));
  m.def("lstm_cell_act", released<lstm_cell_act>(lstm_cell_act));
  m.def("gru_cell_act", released<gru_cell_act>(gru_cell_act));

  m.def("bias_act_statistics", py_bias_act_statistics);
  m.def("linear_act_statistics", py_linear_act_statistics);
  m.def("statistics_", py_statistics_inplace);

  m.def("activations", py_activations);
  m.def("capability", cpu::capability);
  m.def("cuda", py_cuda);

  m.def("memory_stats", py_memory_stats);
  m.def("memory_set_limit", memory::set_limit);
  m.def("memory_set_threshold", memory::set_threshold);
  m.def("memory_empty_cache", memory::empty_cache);
  m.def("memory_enable", memory::enable);
}

}  // namespace fusedact
