# Boot sector of bootsector.qcow2: a whole guest in 512 bytes, for fault sweeps that start hundreds of VMs.
#
# About 18 times a second (BIOS timer tick, `hlt` in between) it adds one to a counter and writes it to LBA 8; twice a
# second it first reads LBA 8 back and checks that it still holds what was written last. The counter goes on over reboots, so a rewound disk shows as a smaller
# number and a second writer as `foreign` > 0. Writes are not flushed by the BIOS.
# Record at LBA 8, little endian: 8 bytes magic "HOSTLERB", u32 counter, u32 foreign, u32 BIOS ticks at the write.

        .code16
        .globl  _start
        .set    BUFFER, 0x8000
        .set    COUNTER, BUFFER + 8
        .set    FOREIGN, BUFFER + 12
        .set    TICKS, BUFFER + 16
        .set    BIOS_TICKS, 0x46c

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        ljmp    $0, $1f
1:      sti
        cld
        movb    %dl, drive
        call    read                            # adopt what the disk holds
        movl    COUNTER, %eax
        movl    %eax, last_counter
        movl    TICKS, %eax
        movl    %eax, last_ticks
        movl    FOREIGN, %eax
        movl    %eax, foreign

tick:   movl    BIOS_TICKS, %ebx
2:      hlt
        cmpl    %ebx, BIOS_TICKS                # any interrupt ends hlt; only the timer ends the wait
        je      2b

        testb   $7, BIOS_TICKS                  # the BIOS spins while the disk works: look at every eighth tick only
        jnz     7f
        call    read
7:      movl    last_counter, %eax
        cmpl    %eax, COUNTER
        jne     3f
        movl    last_ticks, %edx
        cmpl    %edx, TICKS
        je      4f
3:      incl    foreign
4:      cmpl    COUNTER, %eax                   # never go back: continue from the larger of ours and the disk's
        jae     5f
        movl    COUNTER, %eax
5:      incl    %eax
        movl    %eax, COUNTER
        movl    %eax, last_counter
        movl    BIOS_TICKS, %eax
        movl    %eax, TICKS
        movl    %eax, last_ticks
        movl    foreign, %eax
        movl    %eax, FOREIGN
        movl    magic, %eax
        movl    %eax, BUFFER
        movl    magic + 4, %eax
        movl    %eax, BUFFER + 4
6:      movb    $0x43, %ah                      # extended write, again until it succeeds
        call    disk
        jc      6b
        jmp     tick

read:   movb    $0x42, %ah
        call    disk
        jc      read
        ret

disk:   movw    $1, packet_count
        xorb    %al, %al
        movb    drive, %dl
        movw    $packet, %si
        int     $0x13
        ret

        .balign 4
magic:          .ascii  "HOSTLERB"
last_counter:   .long   0
last_ticks:     .long   0
foreign:        .long   0
packet:         .byte   16, 0
packet_count:   .word   1
                .word   BUFFER, 0
                .quad   8
drive:          .byte   0

        .org    510
        .word   0xaa55
