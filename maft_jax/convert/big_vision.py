"""big_vision's .npz layout: image towers with a class token (pool_type="tok").

Its Vision Transformer differs from CLIP's: tanh GELU, LayerNorm of epsilon 1e-6, biases of the
patch convolution and of the projection, no LayerNorm after the embedding, no position for the class
token, and images in [-1, 1]. All of that is part of VisionConfig but the last: towers of ours read
images normalised as CLIP's, and that map from one to the other goes into the patch convolution.
"""
