"""``python -m ao_arm demo``: quantizes a real sentence encoder and compares it with fp32 and with torchao's own.

It goes: arguments (``command``) -> ``figures.measure`` (all figures, as dataclasses) -> JSON file and tables
(``tables``). With ``--model smollm2`` a language model is shown in the same steps, by ``language_figures`` and
``language_tables``; ``smollm2`` and ``gguf_model`` bring its weights. With ``--arm64`` the same command is run on the
emulated machine of tests/arm64 (``emulated``).
"""
