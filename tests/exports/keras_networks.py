"""Small Keras networks, pixels last as TensorFlow has them; `make_exports.py` writes them as ONNX."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

Values = keras.KerasTensor


def convolution(x: Values, width: int, kernel: int, stride: int = 1) -> Values:
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False)(x)
    return layers.ReLU(6.0)(layers.BatchNormalization()(x))


def inverted(x: Values, width: int, stride: int) -> Values:
    """Of MobileNetV2, arXiv:1801.04381; strides pad by hand, as Keras' own does."""
    inputs = x.shape[-1]
    inside = convolution(x, 3 * inputs, 1)
    if stride == 2:
        inside = layers.ZeroPadding2D(((0, 1), (0, 1)))(inside)
    inside = layers.DepthwiseConv2D(3, stride, padding="same" if stride == 1 else "valid", use_bias=False)(
        inside
    )
    inside = layers.ReLU(6.0)(layers.BatchNormalization()(inside))
    inside = layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(inside))
    return layers.Add()([x, inside]) if stride == 1 and inputs == width else inside


def excited(x: Values) -> Values:
    """Squeeze and excite, as EfficientNet's of Keras."""
    width = x.shape[-1]
    gate = layers.Reshape((1, 1, width))(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(width // 4, 1, activation="swish")(gate)
    return layers.Multiply()([x, layers.Conv2D(width, 1, activation="sigmoid")(gate)])


def tanh_gelu(x: Values) -> Values:
    """Gelu by tanh; tf2onnx has no operator for the exact one."""
    return keras.activations.gelu(x, approximate=True)


def classifier(width: int, size: tuple[int, int]) -> keras.Model:
    """Convolutions of stride 2 and padding "same", depthwise ones, gates, pools, dense layers."""
    picture = keras.Input((*size, 3), name="x")
    x = layers.Rescaling(1 / 2, offset=0.1)(picture)
    x = convolution(x, width, 3, 2)
    x = inverted(x, width, 1)
    x = inverted(x, 2 * width, 2)
    x = excited(x)
    x = layers.Concatenate()([layers.MaxPooling2D(3, 1, padding="same")(x), convolution(x, width, 5)])
    x = layers.AveragePooling2D(3, 2, padding="same")(x)
    x = layers.Dense(16, activation=tanh_gelu)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(picture, layers.Softmax()(layers.Dense(10)(x)))


class ResizedLike(layers.Layer):
    """The first, interpolated to the height and width of the second."""

    def call(self, pair: list[tf.Tensor]) -> tf.Tensor:
        return tf.image.resize(pair[0], tf.shape(pair[1])[1:3])


def segmenter(width: int) -> keras.Model:
    """Up by transposed convolutions and by bilinear interpolation, dilated convolutions; any size."""
    picture = keras.Input((None, None, 3), name="x")
    one = convolution(picture, width, 3)
    two = convolution(one, 2 * width, 3, 2)
    x = layers.SeparableConv2D(2 * width, 3, padding="same", activation="swish")(two)
    x = layers.Conv2D(2 * width, 3, padding="same", dilation_rate=2)(x)
    x = layers.LeakyReLU(negative_slope=0.2)(layers.LayerNormalization()(x))
    x = layers.Conv2D(2 * width, 3, 2, padding="same", activation="elu")(x)
    x = layers.Conv2DTranspose(width, 3, 2, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, two])
    x = ResizedLike()([layers.Conv2D(width, 1)(x), one])
    x = layers.Concatenate()([x, one])
    return keras.Model(picture, layers.Conv2D(3, 1, activation="softmax")(x))


def settle(network: keras.Model, seed: int = 0) -> keras.Model:
    """The network with statistics of batch norms as if it had been trained."""
    generator = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            ranges = (0.5, 1.5), (-0.5, 0.5), (-0.3, 0.3), (0.5, 1.5)
            layer.set_weights(
                [
                    generator.uniform(*of, w.shape).astype(np.float32)
                    for of, w in zip(ranges, layer.get_weights())
                ]
            )
    return network


def as_function(network: keras.Model) -> tf.types.experimental.GenericFunction:
    """What tf2onnx takes: a function of the picture."""

    @tf.function
    def called(x: tf.Tensor) -> tf.Tensor:
        return tf.identity(network(x, training=False), name="y")

    return called
