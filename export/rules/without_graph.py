"""Model classes that no file can help: the installed llama.cpp has no graph of them, or only that of another function.

Taken from transformers' causal language models that llama.cpp's own converter, of the version that llama-cpp-python
0.3.36 carries, does not know. A class leaves this table when a version with its graph is installed and its family is
written down in `export.architectures`.
"""

WITHOUT_GRAPH = frozenset((
    "BioGptForCausalLM", "BltForCausalLM", "CTRLLMHeadModel", "CodeGenForCausalLM", "CpmAntForCausalLM",
    "DiffLlamaForCausalLM", "DogeForCausalLM", "Emu3ForCausalLM", "FlexOlmoForCausalLM", "FuyuForCausalLM",
    "GPTJForCausalLM", "GPTNeoForCausalLM", "GPTNeoXJapaneseForCausalLM", "HeliumForCausalLM", "Inkling2ForCausalLM",
    "InklingForCausalLM", "JetMoeForCausalLM", "Lfm3ForCausalLM", "LongcatFlashForCausalLM", "MllamaForCausalLM",
    "ModernBertDecoderForCausalLM", "MoshiForCausalLM", "NanoChatForCausalLM", "OPTForCausalLM",
    "OlmoHybridForCausalLM", "OpenAIGPTLMHeadModel", "PersimmonForCausalLM", "RecurrentGemmaForCausalLM",
    "RwkvForCausalLM", "VaultGemmaForCausalLM", "XGLMForCausalLM", "Zamba2ForCausalLM", "ZambaForCausalLM",
    "ZayaForCausalLM", "xLSTMForCausalLM",
))  # fmt: skip

_PHI_MOE = (
    "the installed llama.cpp's graph normalises by the root mean square and weighs experts by softmax, where the model"
    " has LayerNorm and a sparse mixer"
)
_JINA_SCORES = "the installed llama.cpp's graph has no head of scores"
OTHER_GRAPH = {
    "PhimoeForCausalLM": _PHI_MOE,
    "PhiMoEForCausalLM": _PHI_MOE,
    "JinaEmbeddingsV3ForSequenceClassification": _JINA_SCORES,
}
"""Classes whose architecture llama.cpp knows, with what its graph computes in place of the model."""

WITHOUT_PROJECTOR = frozenset((
    "AriaForConditionalGeneration", "AyaVisionForConditionalGeneration", "Blip2ForConditionalGeneration",
    "ChameleonForConditionalGeneration", "Cohere2VisionForConditionalGeneration", "Emu3ForConditionalGeneration",
    "FastVlmForConditionalGeneration", "Florence2ForConditionalGeneration", "FuyuForCausalLM",
    "Idefics2ForConditionalGeneration", "InstructBlipForConditionalGeneration", "Kosmos2ForConditionalGeneration",
    "MllamaForConditionalGeneration", "Molmo2ForConditionalGeneration", "Ovis2ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration", "PerceptionLMForConditionalGeneration", "T5Gemma2ForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
))  # fmt: skip
"""Classes that see, of which the clip.cpp of the same version has no projector: none of its types is theirs."""
