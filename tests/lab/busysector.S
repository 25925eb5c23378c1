# A guest in 512 bytes that does nothing but dirty memory: PAGES pages from 16 MiB on, one word of each in turn, SPIN turns of a loop between two.
# Its speed is the CPU's, so that a throttled guest dirties in proportion less.

        .code16
        .globl  _start
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
again:  movl    $0x1000000, %edi
        movl    $PAGES, %ecx
1:      incl    (%edi)
        addl    $4096, %edi
        movl    $SPIN, %ebx
2:      decl    %ebx
        jnz     2b
        decl    %ecx
        jnz     1b
        jmp     again

        .balign 8
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:   .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xaa55
