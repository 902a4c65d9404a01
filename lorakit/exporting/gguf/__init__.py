"""Writing GGUF (github.com/ggml-org/ggml, docs/gguf.md). Names and keys are those of the package `gguf`."""
