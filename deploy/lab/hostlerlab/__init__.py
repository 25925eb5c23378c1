"""A lab of real libvirt/QEMU hosts on one machine, for the demo, the system tests and the benchmarks.

Development only: it starts daemons as processes and imports none of their code. One lab per machine at a time, because
bridge, namespace and address names are fixed. `hostlerlab.lab.Lab` is the entrance; `python -m hostlerlab` the command.
"""
