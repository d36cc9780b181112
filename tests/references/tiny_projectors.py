"""Tiny random models that see, of every projector, with what transformers gives for an image.

An image has the size that the projector takes as it is, so that no resizing stands between the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from references.hybrid_models import QWEN35
from references.tiny_checkpoints import SIZES, TinyModel, random_model, write_checkpoint

from edgepack.edge.llama.image import Eyes
from edgepack.edge.llama.image_file import Picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.llama.runtime import LoadedModel

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PLAIN = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@dataclass(frozen=True)
class TinyEyes:
    """A tiny model that sees.

    Attributes:
        model: what decides the checkpoint.
        preprocessor: what preprocessor_config.json says.
        image: height and width of the image.
        features: (model, pixels [3, height, width], normalised) → float64 [tokens, width].
        prepare: changes the random model before it is written.
    """

    model: TinyModel
    preprocessor: dict[str, Any]
    image: tuple[int, int]
    features: Callable[[Any, torch.Tensor], torch.Tensor]
    prepare: Callable[[Any], None] = lambda _model: None

    @property
    def name(self) -> str:
        return self.model.name


def picture(eyes: TinyEyes, seed: int = 3) -> NDArray[np.uint8]:
    """A smooth random image, uint8 [height, width, 3]."""
    height, width = eyes.image
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3))
    return np.kron(coarse, np.ones((height // 4, width // 4, 1))).astype(np.uint8)


def write_eyes(eyes: TinyEyes, folder: Path, tokenizer: Path) -> Any:
    """Write the checkpoint; gives the model."""
    model = random_model(eyes.model)
    eyes.prepare(model)
    write_checkpoint(model, folder, tokenizer, fused_experts=eyes.model.fused_experts)
    _name_tokens(folder / "tokenizer.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(eyes.preprocessor))
    return model


def _name_tokens(path: Path) -> None:
    """Let the vocabulary's last tokens, of which no others are made, be those that projectors look for by name."""
    file = json.loads(path.read_text())
    vocabulary, merges = file["model"]["vocab"], file["model"]["merges"]
    for number, name in enumerate(NAMED, BREAK):
        old = next(text for text, id_ in vocabulary.items() if id_ == number)
        vocabulary[name] = vocabulary.pop(old)
        merges = [pair for pair in merges if "".join(pair if isinstance(pair, list) else pair.split(" ")) != old]
        token = {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}  # fmt: skip
        file["added_tokens"].append(token)
    file["model"]["merges"] = merges
    path.write_text(json.dumps(file))


def expected_embeddings(eyes: TinyEyes, model: Any, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What transformers gives for the image, in float64."""
    mean, std = (np.array(eyes.preprocessor[key]) for key in ("image_mean", "image_std"))
    pixels = torch.tensor(((image / 255.0) - mean) / std).permute(2, 0, 1)
    with torch.no_grad():
        found: NDArray[np.float64] = eyes.features(model.double(), pixels).double().numpy()
    return found


def seen(projector: Path, text: LoadedModel, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """What llama.cpp's mtmd gives for the image, a piece at a time."""
    with Eyes(projector, text) as eyes:
        return eyes.embeddings(Picture("image", pixels=image))


def error_of(got: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """The largest difference, in standard deviations of the expected."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / expected.std())


def distance_of(got: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """The root mean square of the differences, in standard deviations of the expected."""
    return float(np.sqrt(((got - expected) ** 2).mean()) / expected.std())


def _pooled(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(model.get_image_features(pixels[None]).pooler_output))


def _idefics(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(model.get_image_features(pixels[None, None]).pooler_output))


def _patches(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """Patches in reading order, each by its pixels with their colours beside each other: [patches, patch² · 3]."""
    _channels, height, width = pixels.shape
    grid = pixels.reshape(3, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * 3)


def _qwen(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Patches in squares of four, of two equal frames, as Qwen2VLImageProcessor lays them out."""
    patch = model.config.vision_config.patch_size
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    grid = pixels.expand(1, 2, *pixels.shape).reshape(1, 2, 3, rows // 2, 2, patch, columns // 2, 2, patch)
    flat = grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(rows * columns, -1)
    found = model.get_image_features(flat, image_grid_thw=torch.tensor([[1, rows, columns]]))
    deep = getattr(found, "deepstack_features", None) or []
    return torch.cat([found.pooler_output[0], *(each[0] for each in deep)], dim=-1)


def _with_breaks(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Rows of patches with the embedding of [IMG_BREAK] between them, as the processor of Pixtral lays tokens out."""
    vision = model.config.vision_config
    merged = vision.patch_size * getattr(model.config, "spatial_merge_size", 1)
    size = (pixels.shape[1], pixels.shape[2])
    found = model.get_image_features(pixels[None], image_sizes=torch.tensor([size])).pooler_output[0]
    rows = found.reshape(size[0] // merged, size[1] // merged, -1)
    between = model.get_input_embeddings().weight[BREAK].expand(len(rows), 1, -1)
    return torch.cat([rows, between], 1).reshape(-1, found.shape[-1])[:-1]


def _by_shape(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    patch = model.config.vision_config.patch_size
    flat = _patches(pixels, patch)[None]
    shape = torch.tensor([[pixels.shape[1] // patch, pixels.shape[2] // patch]])
    mask = torch.ones(1, flat.shape[1], dtype=torch.int64)
    return torch.cat(
        list(model.get_image_features(flat, spatial_shapes=shape, pixel_attention_mask=mask).pooler_output)
    )


def _by_place(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    patch = model.config.vision_config.patch_size
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    places = torch.tensor([[x, y] for y in range(rows) for x in range(columns)])[None]
    return torch.cat(
        list(model.get_image_features(_patches(pixels, patch)[None], image_position_ids=places).pooler_output)
    )


def _limit(model: Any) -> None:
    """Hold the inputs and outputs of Gemma 4's matrices between numbers that some of them reach."""
    for name, buffer in model.named_buffers():
        if name.endswith(("input_min", "output_min", "input_max", "output_max")):
            buffer.fill_(-1.5 if name.endswith("min") else 1.25)


NAMED = ("[IMG_BREAK]", "[IMG_END]", "<fake_token_around_image>", "<global-img>")  # of Pixtral, of Idefics 3
BREAK = 4094 - len(NAMED)  # the id of the first of them
TEXT = {key: value for key, value in SIZES.items() if key != "model_type"}
TOWER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
SIGLIP = TOWER | {"image_size": 32, "patch_size": 4, "layer_norm_eps": 1e-3}
PIXTRAL = TOWER | {"model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 16}
QWEN = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64, "spatial_merge_size": 2}
MROPE: dict[str, Any] = {
    "rms_norm_eps": 1e-12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
MROPE3: dict[str, Any] = {
    "head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]},
}  # fmt: skip
GEMMA_TEXT = TEXT | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
GEMMA4_TEXT = TEXT | {
    "head_dim": 32, "global_head_dim": 32, "sliding_window": 16, "tie_word_embeddings": True,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 4096,
}  # fmt: skip
LFM2_TEXT = TEXT | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "tie_word_embeddings": True}


def _sees(name: str, family: str, vision: dict[str, Any], text: dict[str, Any], **settings: Any) -> TinyModel:
    whole = {"vision_config": vision, "text_config": text, **settings}
    return TinyModel(name, family, whole, "ForConditionalGeneration")


EYES = (
    TinyEyes(
        _sees("smolvlm", "SmolVLM", SIGLIP, TEXT | {"model_type": "llama"}, scale_factor=2, image_token_id=5),
        HALF | {"size": {"longest_edge": 32}}, (32, 32), _idefics,
    ),
    TinyEyes(
        _sees("idefics-3", "Idefics3", SIGLIP, TEXT | {"model_type": "llama"}, scale_factor=4, image_token_id=5),
        HALF | {"size": {"longest_edge": 32}}, (32, 32), _idefics,
    ),
    TinyEyes(
        _sees("gemma-3", "Gemma3", SIGLIP, GEMMA_TEXT, mm_tokens_per_image=16, image_token_index=5),
        HALF, (32, 32), _pooled,
    ),
    TinyEyes(
        _sees(
            "qwen-2-vl", "Qwen2VL",
            {"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 8},
            TEXT | MROPE,
        ),
        CLIP, (64, 96), _qwen,
    ),
    TinyEyes(  # windows of 112 pixels: this image has whole ones and parts
        _sees(
            "qwen-2.5-vl", "Qwen2_5_VL",
            QWEN | {"depth": 3, "fullatt_block_indexes": [1], "patch_size": 14, "window_size": 112}, TEXT | MROPE,
        ),
        CLIP, (140, 168), _qwen,
    ),
    TinyEyes(  # a grid of positions smaller than the image's
        _sees(
            "qwen-3-vl", "Qwen3VL",
            QWEN | {"depth": 3, "deepstack_visual_indexes": [0, 2], "patch_size": 8, "num_position_embeddings": 36},
            TEXT | MROPE3 | {"num_hidden_layers": 3}, tie_word_embeddings=False,
        ),
        HALF, (64, 96), _qwen,
    ),
    TinyEyes(
        _sees(
            "mistral-3", "Mistral3", PIXTRAL | {"hidden_act": "silu"},
            TEXT | {"model_type": "mistral", "rms_norm_eps": 1e-5}, spatial_merge_size=2, image_token_index=5,
        ),
        CLIP, (64, 64), _with_breaks,
    ),
    TinyEyes(
        _sees(
            "pixtral", "Llava", PIXTRAL, TEXT | {"model_type": "mistral"}, image_token_index=5,
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        ),
        CLIP, (48, 64), _with_breaks,
    ),
    TinyEyes(
        _sees(
            "llava-siglip", "Llava", SIGLIP | {"model_type": "siglip_vision_model"}, TEXT | {"model_type": "llama"},
            image_token_index=5, vision_feature_select_strategy="full",
        ),
        HALF, (32, 32), _pooled,
    ),
    TinyEyes(  # positions are scaled to twice their number a side
        _sees(
            "lfm-2-vl", "Lfm2Vl",
            TOWER | {"model_type": "siglip2_vision_model", "num_patches": 64, "patch_size": 16, "layer_norm_eps": 1e-3},
            LFM2_TEXT, image_token_id=5, projector_hidden_size=80,
        ),
        HALF, (256, 256), _by_shape,
    ),
    TinyEyes(
        _sees(
            "gemma-4", "Gemma4",
            TOWER | {
                "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64,
                "standardize": True,
            },
            GEMMA4_TEXT, image_token_id=5,
        ),
        PLAIN, (96, 108), _by_place,
    ),
    TinyEyes(
        _sees(
            "gemma-4-clipped", "Gemma4",
            TOWER | {
                "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64,
                "use_clipped_linears": True,
            },
            GEMMA4_TEXT, image_token_id=5,
        ),
        PLAIN, (108, 96), _by_place, _limit,
    ),
    TinyEyes(  # as Qwen 3 VL, and nothing beside the last block's output
        _sees(
            "qwen-3.5", "Qwen3_5", QWEN | {"depth": 2, "patch_size": 8, "num_position_embeddings": 64},
            TEXT | QWEN35,
        ),
        HALF, (64, 64), _qwen,
    ),
)  # fmt: skip
