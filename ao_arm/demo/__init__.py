"""``python -m ao_arm demo``: quantizes a real sentence encoder and compares it with fp32 and with torchao's own.

It goes: arguments (``command``) -> ``figures.measure`` (all figures, as dataclasses) -> JSON file and tables
(``tables``). With ``--model llama`` a language model is shown in the same steps, by ``language_figures`` and
``language_tables``. With ``--arm64`` the same command is run on the emulated machine of tests/arm64 (``emulated``).
"""
