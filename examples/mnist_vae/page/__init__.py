"""A trained model in the browser: its export to ONNX, the page that runs it, and a server for this machine."""
