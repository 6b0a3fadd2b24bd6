"""State: a recipe whose model keeps state of every kind, for the tests of the bench."""

import keras
import numpy as np

asked = None


def build_model(
    input_shape=(64,),
    classes=10,
    width=8,
    initializer="glorot_uniform",
    total_steps=1,
    steps_per_epoch=1,
    learning_rate=0.01,
    seed=0,
):
    global asked
    asked = total_steps, steps_per_epoch
    seeds = np.random.SeedSequence(seed).generate_state(3).tolist()
    made = keras.initializers.get(initializer)
    initializers = [type(made)(seed=seed) for seed in seeds]
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(width, kernel_initializer=initializers[0])(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5, seed=seeds[2])(x)
    outputs = keras.layers.Dense(classes, kernel_initializer=initializers[1])(x)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(learning_rate, use_ema=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def make_callbacks(patience=100):
    return [keras.callbacks.EarlyStopping("val_loss", patience=patience)]


def measure(model, split):
    """Return what depends on how the model began: the same seeds draw the same weights again."""
    start = keras.models.clone_model(model)
    return {"start": np.sum(start.get_weights()[0]), "end": np.sum(model.get_weights()[0])}


VARIANTS = {"plain": {}}
EQUAL_START = []
EXPERIMENTS = {
    "digits": {
        "data": "digits",
        "samples": 60,
        "epochs": 3,
        "batch_size": 16,
        "measure": True,
        "learning_rates": {"plain": 0.01},
    }
}
CLAIMS = []
