"""Assets: find models and problem sets, and describe them.

`locations` resolves a hub id, a local path or an embedded world; `gguf` converts a GGUF file into a model folder; `problems`
loads problems and builds prompts; `procedural` generates problems with reasoning-gym; `transfer` copies problem sets to
machines without the hub; `model_folder` checks a local model; `tokenizer_check` compares a loaded tokenizer with its
tokenizer.json; `architecture` computes layer shapes and parameter counts.
`tiny` and `arithmetic` make the embedded world, which is stored in embedded/.

Models and problem sets are named in conf/model, conf/data and conf/benchmark: a new one needs a YAML file there, no code.
This wing imports the ground modules and the form of gold answers from `grading.tasks`, and torch only to make the embedded
world and to convert a GGUF file.
"""
