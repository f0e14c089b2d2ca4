"""Keeps TensorFlow, of which commands use tf.data alone, from importing all of Keras.

It would take two of the five seconds that TensorFlow takes, and 175 MB. Programs that import
maft_jax as a library keep their Keras.
"""

import sys
import types


def leave_keras_out() -> None:
    """Makes `import keras` fail from here on, unless it has been imported already.

    TensorFlow does without; TensorBoard, whose file writer is what metrics need, asks for a class
    to inherit from.
    """
    sys.modules.setdefault("keras", None)
    callback = types.SimpleNamespace(Callback=None)
    sys.modules.setdefault("tensorboard.plugins.hparams._keras", callback)
