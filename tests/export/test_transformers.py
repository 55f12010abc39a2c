"""Test that exported models do in transformers what its own models do."""

import copy
import runpy

import pytest
import torch
from closeness import off

from gam_scale.model.parts import implementations

transformers = pytest.importorskip("transformers")

from exported import FLOAT32, GREEDY, LENGTH, MODELS, T, model_of, padded  # noqa: E402
from small import VOCAB  # noqa: E402

from gam_scale.export.templates.cache_gam_scale import GAMScaleCache  # noqa: E402
from gam_scale.export.templates.modeling_gam_scale import (  # noqa: E402
    GAMScaleForCausalLM,
    GAMScaleForSequenceClassification,
    GAMScaleModel,
)


@pytest.fixture(params=MODELS)
def model(request):
    settings = dict(MODELS[request.param])
    return model_of(*settings.pop("kinds"), **settings)


@pytest.mark.parametrize("kind", implementations())
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing_and_reaches_no_state(kind, side):
    model = model_of(kind, kind)
    ids, mask, real = padded(side)
    alone = model(T[1:, :LENGTH]).logits[0]
    assert off(model(ids, attention_mask=mask).logits[1, real], alone) < FLOAT32
    first = model(ids, attention_mask=mask, use_cache=True)
    assert off(first.logits[1, real], alone) < FLOAT32
    cache, new = first.past_key_values, torch.tensor([[5, 6, 7], [7, 8, 9]])
    for piece in new.split((1, 2), 1):
        mask = torch.cat([mask, torch.ones_like(piece)], 1)
        last = model(piece, attention_mask=mask, past_key_values=cache).logits[:, -1]
    for row, text in enumerate((T[0], T[1, :LENGTH])):
        whole = torch.cat([text, new[row]])[None]
        assert off(last[row], model(whole).logits[0, -1]) < FLOAT32


@torch.no_grad()
def test_a_cache_is_filled_in_place_piece_by_piece(model):
    whole, cache, found = model(T).logits, GAMScaleCache(), []
    for piece in T.split((3, 5, 2), 1):
        before = copy.deepcopy(cache)
        output = model(piece, past_key_values=cache)
        again = model(piece, past_key_values=before)
        assert output.past_key_values is cache and torch.equal(again.logits, output.logits)
        found.append(output.logits)
    assert off(torch.cat(found, 1), whole) < FLOAT32 and cache.get_seq_length() == 10
    with pytest.raises(ValueError, match="cannot forget its last tokens"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="is a DynamicCache, which has no place"):
        model(T, past_key_values=transformers.DynamicCache())
    mask = torch.ones(2, 12)
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="padding in a row that goes on from tokens"):
        model(T[:, :2], past_key_values=cache, attention_mask=mask)


@torch.no_grad()
def test_a_cache_goes_by_its_newer_name_too(model):
    """transformers 5.24 calls ``past_key_values`` ``cache``."""
    cache = model(T[:, :5], use_cache=True).past_key_values
    assert off(model(T[:, 5:], cache=cache).logits, model(T).logits[:, 5:]) < FLOAT32
    assert cache.get_seq_length() == 10


@pytest.mark.parametrize("name", ["configuration", "tokenization"])
def test_transformers_4_is_refused(name, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    with pytest.raises(ImportError, match=r"need.? transformers 5 or later \(.*\); this is 4.57.6"):
        runpy.run_module(f"gam_scale.export.templates.{name}_gam_scale")


def test_what_forward_takes_and_gives(model):
    plain, embeds = model(T).logits, model.get_input_embeddings()(T)
    assert off(model(inputs_embeds=embeds).logits, plain) < FLOAT32
    labelled = model(T, labels=T, use_cache=True, logits_to_keep=3)
    assert off(labelled.logits, plain[:, -3:]) < FLOAT32
    expected = torch.nn.functional.cross_entropy(plain[:, :-1].flatten(0, 1), T[:, 1:].flatten())
    assert off(labelled.loss, expected) < FLOAT32
    half = model(T, labels=T, num_items_in_batch=36).loss
    assert off(2 * half, expected) < FLOAT32
    chosen = torch.tensor([1, 4])
    assert off(model(T, logits_to_keep=chosen).logits, plain[:, chosen]) < FLOAT32
    output = model(T, output_hidden_states=True, output_attentions=False)
    assert len(output.hidden_states) == 3
    logits, cap = model.lm_head(output.hidden_states[-1]), model.config.model["logit_softcap"]
    assert off(cap * torch.tanh(logits / cap) if cap else logits, plain) < FLOAT32
    body = model.model(T)
    assert torch.equal(body.last_hidden_state, output.hidden_states[-1])
    assert torch.equal(model(T, return_dict=False)[0], plain)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(T, inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(2, 1, 10, 10\)"):
        model(T, attention_mask=torch.ones(2, 1, 10, 10))


@torch.no_grad()
def test_position_ids_of_packed_texts_keep_them_apart(model):
    at = torch.arange(10)[None]
    assert torch.equal(model(T, position_ids=at).logits, model(T).logits)
    packed = torch.cat([T[:1, :4], T[1:, :6]], 1)
    at = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    found = model(packed, position_ids=at).logits[:, 4:]
    assert off(found, model(T[1:, :6]).logits) < FLOAT32


def test_generation(model):
    plain = model.generate(T, **GREEDY)
    assert torch.equal(model.generate(T, use_cache=False, **GREEDY), plain)
    assert torch.equal(model.generate(T, prefill_chunk_size=4, **GREEDY), plain)
    cache = model(T[:, :5], use_cache=True).past_key_values
    assert torch.equal(model.generate(T, past_key_values=cache, **GREEDY), plain)
    embeds = model.get_input_embeddings()(T)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), plain[:, 10:])
    ids, mask, _ = padded("left")
    lengths = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda m, i, o: lengths.append(i[0].shape[1]))
    batch = model.generate(ids, attention_mask=mask, **GREEDY)
    hook.remove()
    assert lengths == [10, 1, 1, 1, 1]  # the padded batch, then single tokens
    alone = model.generate(T[1:, :LENGTH], **GREEDY)
    assert torch.equal(batch[1, 10:], alone[0, LENGTH:])
    assert torch.equal(batch[0], plain[0])
    beams = {"num_beams": 3, "attention_mask": mask} | GREEDY
    found = model.generate(ids, **beams)
    assert torch.equal(found, model.generate(ids, use_cache=False, **beams))
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(T[:1], assistant_model=copy.deepcopy(model), **GREEDY)
    with pytest.raises(ValueError, match="nonsense"):
        model.generate(T, nonsense=1, **GREEDY)


def test_layers_are_recomputed_and_gradients_are_the_same(model):
    model.train()
    model(T, labels=T).loss.backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.activation_checkpointing_enable()
    calls = []
    model.model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(0))
    model(T, labels=T, use_cache=True).loss.backward()
    assert len(calls) == 2
    for name, p in model.named_parameters():
        assert off(p.grad, plain[name]) < FLOAT32, name


@torch.no_grad()
def test_a_classifier_reads_each_rows_last_token(model):
    config = copy.deepcopy(model.config)
    config.num_labels = 3
    torch.manual_seed(1)
    classifier = GAMScaleForSequenceClassification(config).eval()
    alone = classifier(T[1:, :LENGTH]).logits
    for side in ("left", "right"):
        ids, mask, _ = padded(side)
        output = classifier(ids, attention_mask=mask, labels=torch.tensor([2, 0]))
        assert off(output.logits[1:], alone) < FLOAT32 and torch.isfinite(output.loss)
    assert off(classifier(padded("right")[0]).logits[1:], alone) < FLOAT32


@torch.no_grad()
def test_saved_and_loaded_in_any_precision_and_in_pieces(model, tmp_path):
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)):
        model = model.to(dtype)
        model.save_pretrained(tmp_path / str(dtype), max_shard_size="5KB")
        again = GAMScaleForCausalLM.from_pretrained(tmp_path / str(dtype))
        assert again.dtype == dtype and len(list((tmp_path / str(dtype)).glob("*-of-*"))) > 1
        tied = again.lm_head.weight is again.model.embedding.weight
        assert tied == model.config.tie_word_embeddings
        assert off(again(T).logits, model(T).logits) < error
    body = GAMScaleModel.from_pretrained(tmp_path / "torch.float32")
    head = GAMScaleForCausalLM.from_pretrained(tmp_path / "torch.float32")
    assert torch.equal(body(T).last_hidden_state, head.model(T).last_hidden_state)
    rough = GAMScaleForCausalLM.from_pretrained(tmp_path / "torch.float32", dtype=torch.bfloat16)
    rates = {p.dtype for name, p in rough.named_parameters() if name.endswith("A_log")}
    assert rough.dtype == torch.bfloat16 and rates <= {torch.float32}
    # bf16 has 8 bits: each of some twenty successive operations is off by up to 1/256.
    assert off(rough(T).logits.float(), head(T).logits) < 0.1
    assert rough.generate(T, **GREEDY).shape == (2, 15)


@torch.no_grad()
def test_the_vocabulary_grows_and_heads_come_apart(model, tmp_path):
    before = model(T).logits
    model.resize_token_embeddings(VOCAB + 7)
    output = model(T, labels=T)
    assert output.logits.shape[-1] == VOCAB + 7 and torch.isfinite(output.loss)
    assert off(output.logits[..., :VOCAB], before) < FLOAT32
    model.save_pretrained(tmp_path)
    assert torch.equal(GAMScaleForCausalLM.from_pretrained(tmp_path)(T).logits, output.logits)
    apart = GAMScaleForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert apart.lm_head.weight is not apart.model.embedding.weight


@torch.no_grad()
def test_layers_on_disk_are_fetched_whole(model, tmp_path):
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    places = dict.fromkeys(("model.embedding", "model.norm", "lm_head"), "cpu")
    if model.model.position is not None:
        places["model.position"] = "cpu"
    places |= {f"model.blocks.{i}": "disk" for i in range(2)}
    loaded = GAMScaleForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    assert any(p.is_meta for p in loaded.parameters())
    assert torch.equal(loaded(T).logits, model(T).logits)
    assert torch.equal(loaded.generate(T, **GREEDY), model.generate(T, **GREEDY))
    assert any(p.is_meta for p in loaded.parameters())


@torch.no_grad()
def test_a_call_is_one_graph_and_can_be_exported(model):
    plain = model(T).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert off(compiled(T).logits, plain) < FLOAT32
    program = torch.export.export(model, (T,), strict=False)
    assert off(program.module()(T).logits, plain) < FLOAT32
