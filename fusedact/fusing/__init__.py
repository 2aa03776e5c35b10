"""`fusedact.fuse(model)`: an existing model, whoever wrote it, with its activations fused.

    model = fusedact.fuse(model)                    a copy; inplace=True for the model itself
    print(fusedact.explain(model))                  what is fused, what is left and why, per qualified name
    fusedact.unfuse(model)                          everything as it was

How it works, one file a step:

    recognise.py   which activation a formula computes: by its numbers, never by its spelling
    roles.py       what a module or function of anyone's does
    source.py      a method's source as a graph of values, one for each run of simple statements
    sites.py       where an activation stands in it, and the edits that fuse it
    edit.py        the function with these edits, and nothing else changed: control flow stays as it is written
    calls.py       what the edited source calls: it looks at hooks, types and dtypes each time, and does what the
                   author wrote where they do not fit
    swap.py        modules change their class, to a subclass of it, and keep everything else
    plan.py        one module; model.py a whole one; verify.py compares; graphs.py rewrites FX graphs (torch.compile)

Nothing is traced, so nothing that depends on the inputs, on `self.training` or on the time of day is baked in.
"""

from fusedact.fusing.graphs import backend, compile_pass
from fusedact.fusing.model import explain, fuse, unfuse
from fusedact.fusing.report import Entry, Report

__all__ = ["Entry", "Report", "backend", "compile_pass", "explain", "fuse", "unfuse"]
