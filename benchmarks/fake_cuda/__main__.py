"""Cost of a block on a GPU: graphs, kernels, bytes.

python -m benchmarks.fake_cuda                  # remakes the table in docs/gpu.md, and its file
python -m benchmarks.fake_cuda --kinds delta    # prints rows of the table, and changes nothing
python -m benchmarks.fake_cuda --kinds delta --update    # remakes these rows, and leaves the others
python -m benchmarks.fake_cuda --dtypes         # prints the dtypes of all operators
"""

from benchmarks.fake_cuda import device

if __name__ == "__main__":
    device.activate()  # before anything else imports torch
    from benchmarks.fake_cuda.command import main

    main()
