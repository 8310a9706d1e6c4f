"""``python -m ao_arm bench``: times int8 and 4-bit linear layers, ours and those of torch and torchao, side by side.

It goes: options (``command``) -> subjects, which are layers (``layers``) or a whole model (``model``) -> for each of
their cases every row of the table of candidates (``candidates``) is built, verified (``verification``) and timed in
turn (``measuring``) -> results (``results``: dataclasses and JSON) -> tables (``tables``), plot (``plot``), comparison
of two result files (``comparison``).
"""
