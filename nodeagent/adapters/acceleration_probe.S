# Boot sector: 64-bit mode with paging, fifty million turns of a loop in the kernel's ring, then port 0xf4 (isa-debug-exit).
# A processor, or QEMU's emulation, needs under 0.2 s for the loop; a hypervisor that interprets each instruction needs minutes.
# as --64 -o probe.o acceleration_probe.S && ld -Ttext=0x7c00 --oformat binary -o acceleration_probe.bin probe.o

        .code16
        .globl  _start
        .set    PML4, 0x1000
        .set    PDPT, 0x2000
        .set    PD, 0x3000
        .set    TURNS, 50000000
        .set    EXIT_PORT, 0xf4
        .set    SUCCESS, 0x21

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        cld
        movw    $PML4, %di                      # three zeroed tables, the first 2 MiB mapped to themselves
        movw    $0x1800, %cx
        rep stosw
        movw    $PDPT + 3, PML4
        movw    $PD + 3, PDPT
        movw    $0x83, PD
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax                     # PAE
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx               # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        lgdt    gdtr
        movl    %cr0, %eax
        orl     $0x80000001, %eax               # PG, PE
        movl    %eax, %cr0
        ljmp    $8, $long

        .code64
long:   movl    $TURNS, %ecx
1:      addq    %rcx, %rax
        decl    %ecx
        jnz     1b
        movb    $SUCCESS, %al
        outb    %al, $EXIT_PORT
2:      hlt
        jmp     2b

        .balign 8
gdt:    .quad   0, 0x00209a0000000000
gdtr:   .word   15
        .long   gdt

        .org    510
        .word   0xaa55
