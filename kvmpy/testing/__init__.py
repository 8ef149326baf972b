"""Testing kernels: a machine to write tests with, the guest's own assertions, a small builder of guests, the pytest plugin."""
