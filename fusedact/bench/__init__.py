"""The benchmark: fusedact beside its peers, every result checked before it is timed, losses shown.

    python -m fusedact bench --quick
    python -m fusedact bench --filter "gelu 512x3072" --save today.jsonl --against yesterday.jsonl

    case.py, cases/   what is computed: expressions over tensors, whole models; one file per family
    providers.py      who computes it, and the ceilings
    space.py          which cells there are (case x mode x output x threads), --filter, and the plans
    measure.py        how: checked, then timed in turns; memory
    results.py        the records, JSON lines, and what of a difference is noise
    goals.py          what is wished for
    report.py, plots.py, command.py     what is shown

Each file knows those above it only. Nothing else in the library knows any of them, but for the command line.
"""
