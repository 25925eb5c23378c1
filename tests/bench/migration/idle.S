# A guest in 512 bytes that does nothing: it halts, and 250 times a second the timer wakes it for as long as its BIOS takes to count one tick more
# (at 0x46c, read from outside). The BIOS's own 18 ticks a second are too coarse a clock for a gap of a tenth of a second.

        .code16
        .globl  _start
        .set    DIVISOR, 4773                   # of the timer's 1,193,182 Hz

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movb    $0x34, %al                      # channel 0, both bytes, rate generator
        outb    %al, $0x43
        movw    $DIVISOR, %ax
        outb    %al, $0x40
        movb    %ah, %al
        outb    %al, $0x40
        sti
1:      hlt
        jmp     1b

        .org    510
        .word   0xaa55
