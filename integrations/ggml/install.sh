# Builds the hook for the llama.cpp (or ggml) in $LLAMA_CPP. To be sourced, in the root of this
# repository.
cmake -S integrations/ggml -B build/ggml -DFA_GGML_SOURCE="$LLAMA_CPP" && cmake --build build/ggml
export GGML_BACKEND_PATH=$PWD/build/ggml/libggml-flash-attention.so
