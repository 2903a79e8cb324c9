"""The launcher's example: a classifier of handwritten digits, MNIST, and a small stand-in for MNIST.

Nothing here imports `launcher`; it stands for any user's own Lightning code.
"""
