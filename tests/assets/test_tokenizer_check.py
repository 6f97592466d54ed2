"""Test that a tokenizer which transformers loads with other rules than those of its tokenizer.json is refused."""

import json
import time

import pytest
from transformers import AutoTokenizer, LlamaConfig

from rlvr_sweeps.assets.tokenizer_check import SNIPPETS, difference, refuse_other_tokenizer, texts
from rlvr_sweeps.errors import Refused
from rlvr_sweeps.training.models import load_tokenizer
from tests.toy import ASSISTANT, BEGIN, END, TEMPLATE, USER


@pytest.fixture
def distilled_llama(tmp_path):
    """Return a folder with a byte-level tokenizer under the class that R1-distilled Llamas name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[BEGIN, END, USER, ASSISTANT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(SNIPPETS, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "bos_token": BEGIN, "eos_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": END, "chat_template": TEMPLATE}))
    LlamaConfig(hidden_size=256, intermediate_size=512, max_position_embeddings=65_536).save_pretrained(tmp_path)
    return tmp_path


def rename_class(folder, name):
    """Write another tokenizer_class into tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))


def test_a_tokenizer_with_other_rules_is_refused_until_its_class_is_corrected(composer, distilled_llama):
    cfg = composer.point(["model=r1_qwen_1_5b", f"model.path={distilled_llama}"]).cfg
    loaded = AutoTokenizer.from_pretrained(distilled_llama)
    assert loaded.decode(loaded("Hello world", add_special_tokens=False)["input_ids"]) != "Hello world"
    with pytest.raises(Refused, match=r"class LlamaTokenizer, .* It encodes 'Hello world' as .*PreTrainedTokenizerFast"):
        load_tokenizer(cfg)
    rename_class(distilled_llama, "PreTrainedTokenizerFast")
    tokenizer = load_tokenizer(cfg)
    assert all(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text for text in texts())


def test_a_decoder_of_its_own_is_refused_although_ids_are_equal(distilled_llama):
    from tokenizers import decoders

    rename_class(distilled_llama, "PreTrainedTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(distilled_llama)
    file = distilled_llama / "tokenizer.json"
    refuse_other_tokenizer(tokenizer, file, "mine")
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    with pytest.raises(Refused, match=r"mine with the class .* It decodes 'Hello world' as 'HelloĠworld'"):
        refuse_other_tokenizer(tokenizer, file, "mine")


def test_saved_tokenizers_are_accepted_quickly(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert difference(loaded, tmp_path / "tokenizer.json") is None and len(set(texts())) > 300
    start = time.process_time()
    difference(loaded, tmp_path / "tokenizer.json")
    assert time.process_time() - start < 0.5
