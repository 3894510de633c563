"""As sentence-transformers loads it: a text network, the mean of its tokens, and of CLIP the projection and the norm.

    DIR/modules.json     0 the network (files of transformers in DIR itself), 1_Pooling, 2_Dense, 3_Normalize
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bigssl.nets.modality.kinds import ENCODER_DECODER
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.export import hushed
from bigssl.transfer.leaving.parts import LeavingPart, UnfitError
from bigssl.transfer.leaving.proof import Claim, digests
from bigssl.transfer.leaving.samples import Samples, contents, write_json
from bigssl.transfer.leaving.to_transformers import check_tokenizer_reloads


def to_sentence_transformers(part: LeavingPart, folder: Path, samples: Samples) -> list[Claim]:
    """Writes the modules to `folder`. Of CLIP, the side of texts. Raises UnfitError."""
    member = part.members.get("text")
    if member is None or not isinstance(member.takes, TextInput):
        raise UnfitError(f"part {part.name!r}: sentence-transformers takes texts, not {part.only.takes.plural}; "
                         "allowed: --format onnx or transformers")
    takes = member.takes
    if member.model.config.model_type in ENCODER_DECODER:
        raise UnfitError(f"part {part.name!r}: sentence-transformers takes the mean of what the decoder of a "
                         f"{member.model.config.model_type} makes, not of what its encoder does; allowed: --format "
                         "onnx or transformers")  # fmt: skip
    with hushed():
        member.model.save_pretrained(folder)
        takes.write(folder)
    check_tokenizer_reloads(part, folder, contents(takes, samples["text"]))
    write_json(folder / "sentence_bert_config.json",
               {"max_seq_length": takes.length, "do_lower_case": False, "model_args": member.options})
    tensors = {f"0.{name}": value for name, value in member.model.state_dict().items()}
    width = member.model.config.hidden_size
    modules = ["Transformer", "Pooling"]
    _module(folder / "1_Pooling", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    if part.kind == "clip":
        weight = part.tensors["text_projection"]
        _module(folder / "2_Dense", {"in_features": width, "out_features": len(weight), "bias": False,
                                     "activation_function": "torch.nn.modules.linear.Identity"})  # fmt: skip
        save_file({"linear.weight": weight.contiguous()}, folder / "2_Dense" / "model.safetensors")
        tensors["2.linear.weight"] = weight
        _module(folder / "3_Normalize", {})
        modules += ["Dense", "Normalize"]
    write_json(folder / "modules.json", [
        {"idx": number, "name": str(number), "path": f"{number}_{name}" if number else "",
         "type": f"sentence_transformers.models.{name}"} for number, name in enumerate(modules)
    ])  # fmt: skip
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    seen = samples["text"]
    embeddings = part.projected("text", seen) if part.kind == "clip" else member.features(seen)
    return [Claim(part.name, folder, "sentence-transformers", 'SentenceTransformer("{folder}")', {},
                  contents(takes, seen), {"embeddings": embeddings.numpy()}, digests(tensors),
                  member.untrained)]  # fmt: skip


def _module(folder: Path, settings: Mapping[str, Any]) -> None:
    folder.mkdir()
    write_json(folder / "config.json", settings)
