"""What every vendor's plugin has to do, as tests that any vendor runs on its own device:

    pytest -p tgi_core.testing.plugin --pyargs tgi_core.testing.contract --device NAME --report FOLDER

- `test_plugin`: it is found, listed without importing PyTorch, and probes within a second.
- `test_kernels`: each kernel that it offers gives its reference's numbers.
- `test_attention`: each attention backend that it offers, over ragged, chunked, mixed and decoding batches.
- `test_scheduler`: the device's declared capabilities, obeyed for any mixture of requests.
- `test_engine`: models give transformers' tokens, however requests join and leave.
- `test_faults`: what fails harms nobody else.
"""
