"""Networks in the form of transformers: what a folder or a type becomes, and what is refused in one line."""

import inspect
import json
import os
import sys

import pytest
import torch

from models import _hf
from models._hf_config import parse_settings
from pruning.errors import UsageError
from utils.settings import registry
from utils.settings.core import Core, model_stem

LLAMA = "hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24"
BERT = "hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24"
VIT = f"{BERT}, patch_size=4"
TOKENS = {"num_classes": 50, "input_shape": (12,), "task": "language"}
PICTURES = {"num_classes": 5, "input_shape": (3, 8, 8)}


def refusal(name, **settings):
    """The message, which must be one line."""
    with pytest.raises(UsageError) as caught:
        _hf.resolve(str(name))(**settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


# -- without transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        (
            "hidden_size=64, rope_theta=1e4,hidden_act=relu",
            {"hidden_size": 64, "rope_theta": 1e4, "hidden_act": "relu"},
        ),
        ("a=true, b=None, c=[1, 2], d='x, y'", {"a": True, "b": None, "c": [1, 2], "d": "x, y"}),
    ],
)
def test_settings_are_read_as_values(text, settings):
    assert parse_settings(text) == settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hidden_size", "name=value"),
        ("hidden_size=", "name=value"),
        ("64", "name=value"),
        ("**{}", "name=value"),
        ("a=1) + dict(b=2", "name=value"),
        ("a=open('x')", "no plain value"),
        ("trust_remote_code=True", "never run"),
        ("auto_map={'AutoModel': 'x.Y'}", "never run"),
        ("attn_implementation='kernels/flash'", "never run"),
    ],
)
def test_settings_that_are_none_are_refused(text, says):
    with pytest.raises(UsageError, match=says):
        parse_settings(text)


def test_its_flags_are_known_and_the_library_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert {flag.name for flag in registry.flags("models", "hf/")} == {"pretrained", "hf_config"}
    assert "Args:" in _hf.resolve("").__doc__
    assert list(inspect.signature(_hf.resolve("")).parameters)[:2] == ["num_classes", "input_shape"]
    assert 'pip install -e ".[transformers]"' in refusal("llama", **TOKENS)


def test_a_folder_is_found_from_everywhere_and_its_name_is_no_path(tmp_path, monkeypatch):
    (tmp_path / "here" / "my_model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    core = Core(model="hf/my_model")
    assert core.model == f"hf/{tmp_path}/here/my_model" and model_stem(core.model) == "hf-my_model"
    assert Core(model="hf/llama").model == "hf/llama" and model_stem("timm/x") == "timm-x" and model_stem("A") == "A"


# -- with it ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def folder(transformers, tmp_path):
    """A small Llama as transformers saves it."""
    model = _hf.resolve("llama")(**TOKENS, hf_config=LLAMA)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "made", "settings"),
    [
        ("llama", "LlamaForCausalLM", {**TOKENS, "hf_config": LLAMA}),
        ("gpt2", "GPT2LMHeadModel", {**TOKENS, "hf_config": "n_embd=16, n_layer=1, n_head=2"}),
        ("bert", "BertLMHeadModel", {**TOKENS, "hf_config": f"{BERT}, is_decoder=true"}),
        ("bert", "BertForSequenceClassification", {"num_classes": 5, "input_shape": (12,), "hf_config": BERT}),
        ("vit", "ViTForImageClassification", {**PICTURES, "hf_config": VIT}),
        ("vit", "ViTForImageClassification", {"num_classes": 5, "input_shape": (1, 12, 12), "hf_config": VIT}),
    ],
)
def test_the_class_follows_from_type_and_data(transformers, kind, made, settings):
    model = _hf.resolve(kind)(**settings)
    assert type(model).__name__ == made and model.dtype == torch.float32
    if settings.get("task") == "language":
        assert model.config.vocab_size == 50
    else:
        assert model.config.num_labels == 5


def test_a_folders_weights_are_loaded_unless_the_user_says_otherwise(folder, transformers):
    saved = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert same_weights(saved, _hf.resolve(str(folder))(**TOKENS))
    assert not same_weights(saved, _hf.resolve(str(folder))(**TOKENS, pretrained=False))
    saved.half().save_pretrained(folder)
    assert _hf.resolve(str(folder))(**TOKENS).dtype == torch.float32


def test_a_head_of_other_classes_is_drawn_anew_and_the_rest_is_kept(folder):
    saved = _hf.resolve(str(folder))(**TOKENS)
    classes = _hf.resolve(str(folder))(num_classes=3, input_shape=(12,), hf_config="pad_token_id=0")
    assert classes.score.out_features == 3 and same_weights(saved.model, classes.model)
    assert "padding token" in refusal(folder, num_classes=3, input_shape=(12,))


def test_code_in_a_folder_is_never_run(folder, tmp_path):
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Model"}, model_type="own")
    assert "auto_map" in refusal(folder, **TOKENS)
    change(folder, auto_map=None, model_type="llama", attn_implementation="some/kernel")
    assert "some/kernel" in refusal(folder, **TOKENS)
    assert not (tmp_path / "ran").exists()


class Harmful:
    """What its file would do when it is read carelessly."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_weights_in_a_torch_file_are_read_without_running_anything(folder, tmp_path):
    saved = _hf.resolve(str(folder))(**TOKENS)
    (folder / "model.safetensors").unlink()
    torch.save(saved.state_dict(), folder / "pytorch_model.bin")
    assert same_weights(saved, _hf.resolve(str(folder))(**TOKENS))
    torch.save({"model.norm.weight": Harmful(str(tmp_path / "ran"))}, folder / "pytorch_model.bin")
    assert "nothing in them was executed" in refusal(folder, **TOKENS)
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_refused(folder):
    assert "layers.2" in refusal(folder, **TOKENS, hf_config="num_hidden_layers=3")
    assert "another shape" in refusal(folder, **TOKENS, hf_config="intermediate_size=48")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-10])
    assert "cannot be read" in refusal(folder, **TOKENS)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refusal(folder, **TOKENS, pretrained=True)
    assert _hf.resolve(str(folder))(**TOKENS).config.hidden_size == 16


def test_a_tokenizer_of_another_vocabulary_and_windows_too_long_are_refused(folder):
    message = refusal(folder, num_classes=51, input_shape=(12,), task="language")
    assert "51 tokens" in message and "has 50" in message
    assert _hf.resolve(str(folder))(num_classes=40, input_shape=(12,), task="language").config.vocab_size == 50
    change(folder, max_position_embeddings=8)
    assert "at most 8 tokens" in refusal(folder, **TOKENS)


def test_a_network_that_sees_what_it_is_to_predict_is_refused(transformers):
    assert "is_decoder=True" in refusal("bert", **TOKENS, hf_config=BERT)


@pytest.mark.parametrize(
    ("kind", "says", "settings"),
    [
        ("lama", "Did you mean llama", TOKENS),
        ("some/repository", "not downloaded", TOKENS),
        ("llama", "hidden_size", {**TOKENS, "hf_config": "hiden_size=8"}),
        ("llama", "heads", {**TOKENS, "hf_config": "hidden_size=9, num_attention_heads=2"}),
        ("llama", "hidden_size", {**TOKENS, "hf_config": "hidden_size=large"}),
        ("vit", "for pictures", {**TOKENS, "hf_config": VIT}),
        ("llama", "for language", {**PICTURES, "hf_config": LLAMA}),
        ("vit", "8x12", {"num_classes": 5, "input_shape": (3, 8, 12), "hf_config": VIT}),
        ("llama", "names a type alone", {**TOKENS, "pretrained": True}),
        ("llama", "fit in memory", {**TOKENS, "hf_config": "hidden_size=65536, num_attention_heads=64"}),
    ],
)
def test_what_cannot_be_built_is_refused(transformers, kind, says, settings):
    assert says in refusal(kind, **settings)


def test_a_folder_that_is_no_model_is_refused(folder):
    change(folder, model_type="lama")
    assert "Did you mean llama" in refusal(folder, **TOKENS)
    (folder / "config.json").write_text("[]")
    assert "no settings" in refusal(folder, **TOKENS)
    (folder / "config.json").write_text("{")
    assert "cannot be read" in refusal(folder, **TOKENS)
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder, **TOKENS)


def test_a_run_trains_prunes_and_is_evaluated(folder, command, tmp_path):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 50)
    settings = ["--model", f"hf/{folder}", "--hf_config", "vocab_size=256", "--no-pretrained", "--data_set", "TEXT"]
    settings += ["--data_dir", tmp_path / "a.txt", "--context", "8", "--limit_batches", "2", "--no-tensorboard"]
    ways = ["--prune_criterion", "Taylor", "--pruning_limit", "0.4", "--uniform", "--round_to", "4", "--unit", "head"]
    done = command(*settings, *ways, "--epochs", "1", "--export", "hf")
    assert "transformers loads it by itself" in done.out
    assert (done.folder / "export" / "model.safetensors").is_file()
    assert done.result["nodes_left"] < done.result["nodes_total"] and done.result["test_perplexity"] > 1
    assert "hf-llama" in done.folder.name
    evaluated = command("--eval", "--checkpoint_name", done.folder)
    assert evaluated.code == 0, evaluated.err
    assert "vocabulary" in command.refused(*settings[:2], *settings[5:], "--epochs", "0")


def test_the_export_is_for_such_models(command):
    assert "not for MLP5" in command.refused("--export", "hf")
