"""`python -m caffe_dns` is `dns`."""

from caffe_dns.cli.main import main

main()
