"""A process that opens a model which llama.cpp refused, and lets it say why on its standard error.

Started by `opening` with one argument, a JSON object; it imports nothing of edgepack.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile


def main() -> None:
    """Try to open the model; what llama.cpp logs is the answer."""
    import xllamacpp

    wish = json.loads(sys.argv[1])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = wish["path"]
    parameters.n_ctx = wish["n_ctx"]
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in wish["adapters"]]
    parameters.n_gpu_layers, parameters.n_parallel = 0, 1
    parameters.warmup = parameters.fit_params = parameters.ui = False
    parameters.verbosity = 1  # LOG_LEVEL_ERROR
    with tempfile.TemporaryDirectory() as folder:
        parameters.hostnames = [os.path.join(folder, "e.sock")] if os.name == "posix" else ["127.0.0.1"]  # noqa: PTH118
        try:
            _kept = xllamacpp.Server(parameters)
        except RuntimeError:
            sys.exit(1)
    os._exit(0)  # its destructor waits for a loop, for ever where that has not begun


if __name__ == "__main__":
    main()
