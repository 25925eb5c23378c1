# A guest in 512 bytes that does nothing but dirty memory and look whether it is still there: PAGES pages from 16 MiB on, SPIN turns of a loop
# between two. Its speed is the CPU's, so a throttled guest works in proportion less.
#
# Each pass leaves its number in every page; a page that holds another number than the pass before left was lost by whoever copied it. At WORK it
# counts the pages it has written, at WORK + 4 those it found wrong; both are read from outside, in the memory of its QEMU.

        .code16
        .globl  _start
        .set    WORK, 0x8000
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdt    gdtr
        inb     $0x92, %al
        orb     $2, %al                         # the A20 gate
        outb    %al, $0x92
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmp    $8, $flat

        .code32
flat:   movw    $16, %ax
        movw    %ax, %ds
        xorl    %edx, %edx                      # the number that every page holds now
        movl    %edx, WORK
        movl    %edx, WORK + 4
pass:   movl    $0x1000000, %edi
        movl    $PAGES, %ecx
1:      cmpl    %edx, (%edi)
        je      2f
        incl    WORK + 4
2:      leal    1(%edx), %eax
        movl    %eax, (%edi)
        incl    WORK
        addl    $4096, %edi
        movl    $SPIN, %ebx
3:      decl    %ebx
        jnz     3b
        decl    %ecx
        jnz     1b
        incl    %edx
        jmp     pass

        .balign 8
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:   .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xaa55
