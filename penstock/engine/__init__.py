"""The composition root, the engine process and the offline API: the only package that knows concrete classes."""
