"""Every model class of SGLang, with and without the plugin: `python -m families` in tests/python.

`recipes` says how a tiny model of each class is built, `host` loads and runs one in SGLang's own
`ModelRunner`, `reference` computes the same with the activation written out by hand, `sweep` puts
them together into one JSON, and `page` prints docs/models.md from it.
"""
