# Boot sector of guest.qcow2: the whole boot loader, in one sector, with no menu and no timeout.
#
# Assembled by build.py (as + ld, flat binary at 0x7c00). It copies the extents of the table at `extents` from the boot
# disk to their 32-bit physical addresses and enters the kernel's own 16-bit setup code, as the Linux/x86 boot protocol
# describes ("The real-mode kernel code", Documentation/x86/boot.rst). build.py fills in the kernel's setup header and the
# command line beforehand, so nothing has to be decided here. BIOS only; the disk may be virtio, IDE or SCSI.

        .code16
        .globl  _start
        .set    BOUNCE_SEGMENT, 0x2000          # 32 KiB read buffer at 0x20000, above the setup code at 0x10000
        .set    CHUNK_SECTORS, 64

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        ljmp    $0, $1f
1:      sti
        cld
        movb    %dl, drive                      # the BIOS says which disk it booted from
        inb     $0x92, %al                      # address line 20 on
        orb     $2, %al
        andb    $0xfe, %al
        outb    %al, $0x92

        movw    $extents, %bp                   # (%bp): lba, 4(%bp): sectors left, 8(%bp): destination
extent: movl    (%bp), %eax
        movl    %eax, packet_lba
        cmpl    $0, 4(%bp)
        je      enter
chunk:  movl    4(%bp), %eax
        cmpl    $CHUNK_SECTORS, %eax
        jbe     2f
        movl    $CHUNK_SECTORS, %eax
2:      movw    %ax, packet_count
        pushl   %eax
        movb    $0x42, %ah                      # extended read
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        popl    %ecx
        jc      failed
        addl    %ecx, packet_lba
        subl    %ecx, 4(%bp)

        cli                                     # "unreal mode": the BIOS may have reset the segment limits, so each time
        lgdt    gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        jmp     3f
3:      movw    $8, %bx
        movw    %bx, %ds
        movw    %bx, %es
        andb    $0xfe, %al
        movl    %eax, %cr0
        ljmp    $0, $4f
4:      xorw    %bx, %bx
        movw    %bx, %ds
        movw    %bx, %es
        shll    $7, %ecx                        # sectors to 32-bit words
        movl    $(BOUNCE_SEGMENT << 4), %esi
        movl    8(%bp), %edi
        addr32 rep movsl
        movl    %edi, 8(%bp)
        sti
        cmpl    $0, 4(%bp)
        jne     chunk
        addw    $12, %bp
        jmp     extent

enter:  cli
        movw    $0x1000, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movw    $0xe000, %sp
        ljmp    $0x1020, $0

failed: movw    $message, %si
5:      lodsb
        testb   %al, %al
        jz      6f
        movb    $0x0e, %ah
        movw    $7, %bx
        int     $0x10
        jmp     5b
6:      cli
        hlt
        jmp     6b

message:        .asciz  "Hostler guest: disk read failed\r\n"
drive:          .byte   0
        .balign 4
gdt:            .quad   0, 0x00cf92000000ffff   # null, flat 4 GiB data
gdt_pointer:    .word   . - gdt - 1
                .long   gdt
        .balign 4
packet:         .byte   16, 0
packet_count:   .word   0
                .word   0, BOUNCE_SEGMENT
packet_lba:     .quad   0

        # SETUP_*, KERNEL_*, INITRD_* come from build.py (--defsym)
        .balign 4
extents:        .long   SETUP_LBA, SETUP_SECTORS, 0x10000
                .long   KERNEL_LBA, KERNEL_SECTORS, 0x100000
                .long   INITRD_LBA, INITRD_SECTORS, INITRD_ADDRESS
                .long   0, 0, 0

        .org    510
        .word   0xaa55
