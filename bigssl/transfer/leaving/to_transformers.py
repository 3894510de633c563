"""As transformers loads it: `AutoModel`, or with the trained heads `AutoModelForMaskedLM`, `AutoModelForPreTraining`,
`AutoModelForNextSentencePrediction`, `AutoModelForCausalLM`, `AutoModelForSeq2SeqLM`, `PatchTSTForPretraining`,
`PatchTSTForPrediction`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers import __version__ as version

from bigssl.data.sample import Sample
from bigssl.nets.heads.writing import written_states
from bigssl.nets.modality.kinds import ENCODER_DECODER, OBSERVED
from bigssl.nets.pool import leading_tokens
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving.causal import causal_head, causal_language_model, open_ended
from bigssl.transfer.leaving.export import hushed
from bigssl.transfer.leaving.masked import masked_language_model
from bigssl.transfer.leaving.paired import BOTH, NEXT, fitting_pairs, pair_logits, paired_model, with_segments
from bigssl.transfer.leaving.parts import LeavingPart, PartNetwork, UnfitError
from bigssl.transfer.leaving.proof import Claim, arguments, digests
from bigssl.transfer.leaving.samples import Samples, collated, contents
from bigssl.transfer.leaving.stepwise import CLASSES, stepwise_model, stepwise_outputs
from bigssl.transfer.leaving.writing import first_written, trained_writing_head, writing_model

TOKENS = 256  # whose logits are compared
BEGINNING = 5  # tokens of a text that a pipeline goes on with
WRITTEN = 5  # tokens of a text that an encoder-decoder writes


def to_transformers(part: LeavingPart, folder: Path, samples: Samples) -> list[Claim]:
    """Writes weights and preprocessor to `folder`. Raises UnfitError."""
    kinds: dict[str, Callable[[LeavingPart, list[Sample]], Written]] = {
        "network": _network, "mlm": _masked, "causal": _causal, "writing": _writing, "clip": _dual,
        "masked_series": _stepwise, "forecast": _stepwise}  # fmt: skip
    seen = next(iter(samples.values()))
    part = open_ended(part) if part.kind == "causal" else part
    model, load, outputs = (_paired if part.pair else kinds[part.kind])(part, seen)
    member = part.only
    with hushed():
        model.save_pretrained(folder)
        member.takes.write(folder)
    if part.pair:
        with_segments(folder)
    check_tokenizer_reloads(part, folder, contents(member.takes, seen))
    said = arguments(load.get("options", {}))
    return [Claim(part.name, folder, "transformers", f'{load["class"]}.from_pretrained("{{folder}}"{said})',
                  {"modality": member.takes.modality} | load, contents(member.takes, seen),
                  {name: value.numpy() for name, value in outputs.items()}, digests(model.state_dict()),
                  member.untrained, member.takes.before)]  # fmt: skip


def check_tokenizer_reloads(part: LeavingPart, folder: Path, texts: list[bytes]) -> None:
    """For some types (qwen2) `AutoTokenizer` takes the class of the type, whatever tokenizer_config.json says. Raises
    UnfitError where it makes other tokens."""
    for takes in (member.takes for member in part.members.values() if isinstance(member.takes, TextInput)):
        with hushed():
            other = AutoTokenizer.from_pretrained(folder)
            same = all(other(text)["input_ids"] == takes.tokenizer(text)["input_ids"]
                       for text in map(bytes.decode, texts))  # fmt: skip
        if not same:
            raise UnfitError(
                f"part {part.name!r}: AutoTokenizer of transformers {version} makes other tokens in a folder of this "
                f"type, by its own {type(other).__name__}; allowed: --format onnx, whose tokenizer.json is read as it "
                f"is, or backbones of another type"
            )


Written = tuple[PreTrainedModel, dict[str, Any], dict[str, Tensor]]


def _network(part: LeavingPart, samples: list[Sample]) -> Written:
    member = part.only
    load = {"class": "AutoModel", "options": member.options, "outputs": ["features"], **_facts(member)}
    return member.model, load, {"features": member.features(samples)}


def _facts(member: PartNetwork) -> dict[str, Any]:
    """What the mean of `last_hidden_state` is over, beyond the modality."""
    kind = member.model.config.model_type
    found: dict[str, Any] = {"observed": OBSERVED.get(kind), "reads": kind in ENCODER_DECODER}
    if isinstance(member.takes, ImageInput):
        pixels = torch.zeros(1, member.takes.channels, member.takes.size, member.takes.size)
        with torch.no_grad():
            hidden = member.model(pixel_values=pixels).last_hidden_state
        found["leading"] = 0 if hidden.dim() == 4 else leading_tokens(member.model, pixels, hidden)
    return found


def _masked(part: LeavingPart, samples: list[Sample]) -> Written:
    return masked_language_model(part), *_masked_outputs(part, samples)


def _masked_outputs(part: LeavingPart, samples: list[Sample]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    member = part.only
    assert isinstance(member.takes, TextInput)
    tokenizer = member.takes.tokenizer
    hidden, real = member.hidden(samples)
    logits = part.head().logits(hidden[real][:TOKENS])
    prompts = [beginning(member.takes, text, f" {tokenizer.mask_token}") for text in contents(member.takes, samples)]
    ids = [torch.tensor(tokenizer(prompt)["input_ids"])[None] for prompt in prompts]
    with torch.no_grad():
        asked = [member.model(input_ids=each).last_hidden_state[each == tokenizer.mask_token_id] for each in ids]
        best = torch.cat([part.head().logits(each).argmax(-1) for each in asked])
    load = {"class": "AutoModelForMaskedLM", "outputs": ["token_logits", "pipeline"], "tokens": TOKENS,
            "pipeline": "fill-mask", "prompts": prompts}  # fmt: skip
    return load, {"token_logits": logits, "pipeline": best}


def _paired(part: LeavingPart, samples: list[Sample]) -> Written:
    """The same folder is loaded by `AutoModelForMaskedLM` for its pipeline, which takes no model of two heads."""
    member = part.only
    assert isinstance(member.takes, TextInput)
    pairs = fitting_pairs(part, [beginning(member.takes, text) for text in contents(member.takes, samples)])
    load, outputs = _masked_outputs(part, samples) if part.kind == "mlm" else ({"outputs": []}, {})
    load |= {"class": (BOTH if part.kind == "mlm" else NEXT).__name__, "pairs": pairs,
             "pipeline_class": load.get("class"), "outputs": [*load["outputs"], "pair_logits"]}  # fmt: skip
    return paired_model(part), load, outputs | {"pair_logits": pair_logits(part, pairs)}


def _causal(part: LeavingPart, samples: list[Sample]) -> Written:
    model, member, head = causal_language_model(part), part.only, causal_head(part)
    assert isinstance(member.takes, TextInput)
    hidden, real = member.hidden(samples)
    prompts = [beginning(member.takes, text) for text in contents(member.takes, samples)]
    with torch.no_grad():
        ids = [torch.tensor(member.takes.tokenizer(prompt)["input_ids"])[None] for prompt in prompts]
        ends = torch.cat([member.model(input_ids=each, use_cache=False).last_hidden_state[:, -1] for each in ids])
        logits = {"token_logits": head.logits(hidden[real][:TOKENS]), "pipeline": head.logits(ends).argmax(-1)}
    load = {"class": "AutoModelForCausalLM", "outputs": ["token_logits", "pipeline"], "tokens": TOKENS,
            "pipeline": "text-generation", "prompts": prompts}  # fmt: skip
    return model, load, logits


def _writing(part: LeavingPart, samples: list[Sample]) -> Written:
    """Beside the tokens of a text that are shown to the decoder, one position late, and by itself from their begin."""
    model, member = writing_model(part), part.only
    batch = collated(member.takes, samples)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        states = written_states(member.model, ids, mask, ids)[mask.bool()][:TOKENS]
        logits = {"token_logits": trained_writing_head(part).logits(states),
                  "written": first_written(part, ids, mask, WRITTEN)}  # fmt: skip
    load = {"class": "AutoModelForSeq2SeqLM", "outputs": ["token_logits", "written"], "tokens": TOKENS, "new": WRITTEN,
            "start": member.model.config.decoder_start_token_id}  # fmt: skip
    return model, load, logits


def _stepwise(part: LeavingPart, samples: list[Sample]) -> Written:
    outputs = stepwise_outputs(part, samples)
    load = {"class": CLASSES[part.kind].__name__, "outputs": list(outputs), **_facts(part.only)}
    return stepwise_model(part), load, outputs


def beginning(takes: TextInput, text: bytes, end: str = "") -> str:
    """The first tokens of a text, whatever it has between its words, and `end`: at least one token shorter, special
    ones included, than the network takes."""
    said = text.decode()
    tokens = takes.tokenizer(said, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    stops = [0, *(stop for _, stop in tokens["offset_mapping"][:BEGINNING])]
    prompts = [said[:stop].strip() + end for stop in stops]
    fitting = [prompt for prompt in prompts if len(takes.tokenizer(prompt)["input_ids"]) < takes.length]
    return fitting[-1] if fitting else prompts[0]


def _dual(part: LeavingPart, samples: list[Sample]) -> Written:
    image, text = (part.members[role].model.config.model_type for role in ("image", "text"))
    raise UnfitError(
        f"part {part.name!r}: no dual encoder of transformers takes the means of {image} and {text} that were trained: "
        f"they project a first token, a last one, or a pooler's output; allowed: --format onnx (both sides), "
        f"--format sentence-transformers (texts), or --part {' or '.join(m.name for m in part.members.values())}"
    )
