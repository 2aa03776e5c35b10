// What the programs know of a row: its default parameters and kinks (a test compares both with registry.py), and its truth.
#pragma once

#include <vector>

#include "truth.h"

namespace proof {

struct Row {
  const char* name;
  std::vector<double> params;
  std::vector<double> kinks;  // there a derivative is a convention, which tests/test_kinks.py has
  void (*truth)(const double* x, int count, const double* p, double* f, double* d, double* s);
  bool periodic = false;  // roots without end, with a slope of 1 at each
};

inline const std::vector<Row> rows = {
    {"identity", {}, {}, fill<truth::identity>},
    {"relu", {}, {0}, fill<truth::relu>},
    {"relu6", {}, {0, 6}, fill<truth::relu6>},
    {"leaky_relu", {0.01}, {0}, fill<truth::leaky_relu>},
    {"prelu", {0.25}, {0}, fill<truth::leaky_relu>},
    {"rrelu", {(1. / 8 + 1. / 3) / 2}, {0}, fill<truth::leaky_relu>},
    {"elu", {1}, {0}, fill<truth::elu_>},
    {"celu", {1}, {0}, fill<truth::celu>},
    {"selu", {}, {0}, fill<truth::selu>},
    {"gelu", {}, {}, fill<truth::gelu>},
    {"gelu_tanh", {}, {}, fill<truth::gelu_tanh>},
    {"quick_gelu", {}, {}, fill<truth::quick_gelu>},
    {"silu", {}, {}, fill<truth::silu>},
    {"swish", {1}, {}, fill<truth::swish>},
    {"mish", {}, {}, fill<truth::mish>},
    {"softplus", {1, 20}, {20}, fill<truth::softplus>},
    {"sigmoid", {}, {}, fill<truth::sigmoid>},
    {"logsigmoid", {}, {}, fill<truth::logsigmoid>},
    {"tanh", {}, {}, fill<truth::tanh_>},
    {"tanhshrink", {}, {}, fill<truth::tanhshrink>},
    {"softsign", {}, {}, fill<truth::softsign>},
    {"hardtanh", {-1, 1}, {-1, 1}, fill<truth::clip_>},
    {"clamp", {-1, 1}, {-1, 1}, fill<truth::clip_>},
    {"hardsigmoid", {}, {-3, 3}, fill<truth::hardsigmoid>},
    {"hardswish", {}, {-3, 3}, fill<truth::hardswish>},
    {"hardshrink", {0.5}, {-0.5, 0.5}, fill<truth::hardshrink>},
    {"softshrink", {0.5}, {-0.5, 0.5}, fill<truth::softshrink>},
    {"threshold", {0, 0}, {0}, fill<truth::threshold>},
    {"fatrelu", {0}, {0}, fill<truth::fatrelu>},
    {"squared_relu", {}, {0}, fill<truth::squared_relu>},
    {"hard_mish", {}, {-2, 0}, fill<truth::hard_mish>},
    {"softcap", {30}, {}, fill<truth::softcap_>},
    {"situ", {4}, {}, fill<truth::situ>},
    {"elup1", {}, {0}, fill<truth::elup1>},
    {"square", {}, {}, fill<truth::square>},
    {"signed_sqrt", {}, {0}, fill<truth::signed_sqrt>},
    {"cos", {}, {}, fill<truth::cos_>, true},
    {"sin", {}, {}, fill<truth::sin_>, true},
};

}  // namespace proof
