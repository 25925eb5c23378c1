"""The lab's guests: two disk images that boot by themselves with a BIOS, built here from Debian packages.

`guest.qcow2`: a Linux guest that is a witness. It gets its address by DHCP as `hostler-<last three MAC bytes>`, streams
numbered lines on port 7, answers questions about itself on port 8, writes a counter on its own disk 20 times a
second, powers off on the ACPI power button and reboots on ctrl-alt-del. `bootsector.qcow2`: a guest of 512 bytes that
only counts on its disk, for sweeps that start hundreds of VMs.

    python -m hostlerlab.guest.build build/guest
    async with probe.watch("10.0.0.5") as stream: ...; print(stream.report())

`build` makes the images, `layout` says what is where on them, `probe` reads them from outside. `init.c` is the Linux
guest's PID 1, `loader.S` and `bootsector.S` are the boot sectors. An image is a template: give each VM a copy or an
overlay. Its boot id is new at each boot and stays through pauses and migrations; its counter goes on over reboots.
Needs virtio disk and network card, BIOS (no UEFI), 128 MiB; a DHCP server that does not ping an address for
seconds before offering it (dnsmasq: `no-ping`).
"""
