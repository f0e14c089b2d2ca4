"""Plans a training run on TPUs without a TPU, by compiling its step for them."""
