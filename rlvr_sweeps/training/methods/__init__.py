"""What a method trains: adapters, their initialisation, merging, and measurements of the trained update.

A method is a file of conf/peft: PEFT's config, the names of the trained parameters, initialisation, learning-rate ratio.
`adapters` attaches it. Modules: `adalora` (rank schedule), `dora` (norm from factors), `svd` (singular triplets, cached),
`merging` (weights of the policy), `reach` (how far weights moved), `spectra` (where the update lies in W0's spectrum).

To add a method that PEFT has, add a file to conf/peft; docs/adding.md has the steps. Where PEFT lacks a part, add a module here
and call it from `adapters.attach`. Imports: training/models and the wings that training may import; PEFT and torch are allowed.
"""
