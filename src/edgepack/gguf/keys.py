"""Names of metadata keys, each once: those of the GGUF format and those that edgepack adds.

Keys of an architecture (`llama.block_count`) are built where they are needed; what the values mean is told there too.
Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and packaging/VARIANT.md.
"""

from __future__ import annotations

# Of every GGUF.
GENERAL = "general."
ARCHITECTURE = "general.architecture"
NAME = "general.name"
TYPE = "general.type"  # `model`, `adapter`, `imatrix` …
ALIGNMENT = "general.alignment"
FILE_TYPE = "general.file_type"
QUANTIZATION_VERSION = "general.quantization_version"

# Of one file of several.
SPLIT = "split."
SPLIT_NUMBER = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"

# Of vocabularies.
TOKENIZER = "tokenizer.ggml."
TOKENIZER_MODEL = "tokenizer.ggml.model"
TOKENIZER_PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
VOCABULARY_SCORES = "tokenizer.ggml.scores"
VOCABULARY_TYPES = "tokenizer.ggml.token_type"
VOCABULARY_SEGMENTS = "tokenizer.ggml.token_type_count"
MERGES = "tokenizer.ggml.merges"
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
UNKNOWN_ID = "tokenizer.ggml.unknown_token_id"
REMOVE_EXTRA_WHITESPACES = "tokenizer.ggml.remove_extra_whitespaces"
PRECOMPILED_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
NORMALIZER_LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
NORMALIZER_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"
CHAT_TEMPLATE = "tokenizer.chat_template"
CHAT_TEMPLATES = "tokenizer.chat_templates"  # names of further ones, each under CHAT_TEMPLATE.NAME

# Of LoRA adapters.
ADAPTER_TYPE = "adapter.type"
ADAPTER_ALPHA = "adapter.lora.alpha"
ADAPTER_BASE = "edgepack.adapter.base"  # digest of the norms and biases of the model that it was trained on
ADAPTER_BASE_FILE = "edgepack.adapter.base_file"  # digest of the one file whose loss it gives back
ADAPTER_ABOUT = "edgepack.adapter.about"  # how it was trained, as JSON

# Of projectors: what sees, beside the model that reads (llama.cpp's tools/mtmd/clip-impl.h).
PROJECTOR_ARCHITECTURE = "clip"
PROJECTOR_TYPE = "clip.projector_type"
PROJECTOR_TYPE_OF_VISION = "clip.vision.projector_type"  # where a file hears too
PROJECTOR_WIDTH = "clip.vision.projection_dim"  # of the embeddings that the model reads

# Of files quantised with an importance matrix.
QUANTIZE = "quantize."
IMATRIX = "quantize.imatrix."

# edgepack's own.
RECIPE = "edgepack.recipe"  # the recipe as TOML
FIGURES = "edgepack.pass."  # and a pass' number, a dot, a figure's name
CERTIFICATE = "edgepack.certificate"
CONFIDENCE = "edgepack.confidence."  # and a form of question: how sure its answers are, as JSON
CONFIDENCE_VERSION = "edgepack.confidence.version"
CONFIDENCE_DIGEST = "edgepack.confidence.digest"  # of the contents that it was fitted on
CONFIDENCE_ADAPTERS = "edgepack.confidence.adapters"  # digests and strengths of the adapters that ran with them
KV = "edgepack.kv."  # what each type of KV cache costs the file
KV_VERSION = "edgepack.kv.version"
KV_DIGEST = "edgepack.kv.digest"  # of the contents that it was measured on
KV_ADAPTERS = "edgepack.kv.adapters"  # digests and strengths of the adapters that ran with them
KV_TABLE = "edgepack.kv.table"  # as JSON
EMBEDDING_NORMALIZE = "edgepack.embedding.normalize"  # embeddings are scaled to length 1
EMBEDDING_PROMPT = "edgepack.embedding.prompt."  # and a prompt's name: the text before every input
EMBEDDING_DEFAULT_PROMPT = "edgepack.embedding.default_prompt"  # the prompt's name that is taken when none is named
IMATRIX_RUN = "edgepack.imatrix.run"  # what two runs must share for one to go on with the other
VARIANT = "edgepack.variant."
VARIANT_VERSION = "edgepack.variant.version"
VARIANT_TENSORS = "edgepack.variant.tensors"
VARIANT_TENSOR = "edgepack.variant.tensor."
WIRE = "edgepack.wire."
WIRE_HOST = "edgepack.wire.host"  # there where matrices lie on grids
WIRE_SCALE = "edgepack.wire.scale"
WIRE_RDO = "edgepack.wire.rdo"
WIRE_TRELLIS = "edgepack.wire.trellis"  # states that their integers follow; 0 for none
WIRE_DRIFT = "edgepack.wire.drift"
WIRE_CALIBRATION_SHA256 = "edgepack.wire.calibration_sha256"
WIRE_CALIBRATION_TOKENS = "edgepack.wire.calibration_tokens"
REFINE = "edgepack.refine."
REFINE_BUDGET = "edgepack.refine.budget"  # bytes that the file may have
REFINE_ALLOCATION = "edgepack.refine.allocation"  # whether types were allocated, or are the target's mixture
REFINE_ON_GPU = "edgepack.refine.on_gpu"  # whether activations were taken to be rounded as on GPUs
REFINE_PREFER_SPEED = "edgepack.refine.prefer_speed"  # whether what every token reads was priced
REFINE_PREDICTED_KL = "edgepack.refine.predicted_kl"  # of weights and activations, nats a token
REFINE_CALIBRATION_SHA256 = "edgepack.refine.calibration_sha256"
REFINE_CALIBRATION_TOKENS = "edgepack.refine.calibration_tokens"
REFINE_UNRATED = "edgepack.refine.unrated"  # matrices whose bits did not count, though others' did
REFINE_RATE = "edgepack.refine.rate"  # nats a token that a bit in the archive was worth; there where bits counted
REFINE_PASSES_FOR = "edgepack.refine.passes_for"  # target whose types the passes in front worked for
REFINE_SEED = "edgepack.refine.seed"  # of the labels that curvature draws
TUNING = "edgepack.tuning."
TUNING_STEPS = "edgepack.tuning.steps"  # of the schedule, with which the same bytes come again
TUNING_BEST_STEP = "edgepack.tuning.best_step"  # after which the file was as it is
TUNING_PARTS = "edgepack.tuning.parts"
TUNING_MOVES = "edgepack.tuning.moves"  # how integers were moved
TUNING_RATE = "edgepack.tuning.rate"
TUNING_SEED = "edgepack.tuning.seed"
TUNING_TOKENS = "edgepack.tuning.tokens"  # of the text, what was held out included
TUNING_TEXT_SHA256 = "edgepack.tuning.text_sha256"  # of the token ids, int64, sequence by sequence
TUNING_KL_BEFORE = "edgepack.tuning.held_out_kl_before"
TUNING_KL_AFTER = "edgepack.tuning.held_out_kl_after"
# Beginnings of the keys that tell how a file was made; nothing that runs a model reads them.
NOTES = (RECIPE, FIGURES, CERTIFICATE, CONFIDENCE, KV, WIRE, REFINE, IMATRIX_RUN, TUNING)
