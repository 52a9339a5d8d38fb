"""The program `dns`, which is also `python -m caffe_dns`."""

from caffe_dns import interrupt

interrupt.begin()


def main() -> None:
    """Run the command that the arguments say, and exit."""
    from caffe_dns.cli.main import main as run  # here, because signals are heeded first
    from caffe_dns.cli.threads import wait_briefly

    wait_briefly()
    try:
        run()
    finally:
        interrupt.finish()


if __name__ == "__main__":
    main()
