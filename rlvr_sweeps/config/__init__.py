"""Configuration: what a run is asked to do, from the command line and conf/ to a checked, resolved configuration with an id.

`schema` defines every setting and its default; `compose` resolves overrides with Hydra; `checks` refuses what cannot work;
`settings` reads single settings of a configuration; `identity` computes the run id; `sweeps` reads the rows of conf/sweep/;
`claims` reads the claim cards of conf/claim/; `lr_grid` has the learning rates of lr=auto.
A new setting is a field in `schema`, and a pattern in `identity.NOT_SCIENCE` if it cannot change what is trained. The wing may
import grading, assets and the ground modules (tests/test_wings.py).
"""
