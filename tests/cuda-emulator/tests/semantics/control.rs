//! Branches, guards, loops, barriers and exits.

use crate::harness::run;

/// Runs a kernel in which thread i writes word i of the output, and returns the output.
fn words(body: &str, grid: usize, block: usize, input: &[u64]) -> Vec<u64> {
    let body = format!("mul.wide.u32 %x15, %i, 8;\nadd.u64 %out, %out, %x15;\n{body}");
    run(&body, grid, block, input, grid * block)
}

#[test]
fn guards() {
    let body = "
        setp.lt.u32 %p0, %tid, 3;
        mov.u32 %a1, 1;
        @%p0 mov.u32 %a1, 2;
        @!%p0 add.u32 %a1, %a1, 10;
        @%p0 st.global.u32 [%out], %a1;
        @!%p0 st.global.u32 [%out+4], %a1;
    ";
    assert_eq!(words(body, 1, 5, &[]), [2, 2, 2, 11 << 32, 11 << 32]);
}

/// After a divergent branch each lane executes its path, and all lanes reconverge.
#[test]
fn lanes_diverge_and_reconverge() {
    let body = "
        and.b32 %a1, %tid, 3;
        mov.u32 %a2, 0;
        setp.eq.u32 %p0, %a1, 0;
        @%p0 bra ZERO;
        setp.eq.u32 %p1, %a1, 1;
        @%p1 bra ONE;
        add.u32 %a2, %a2, 100;
        bra.uni MEET;
        ONE:
        add.u32 %a2, %a2, 10;
        bra MEET;
        ZERO:
        add.u32 %a2, %a2, 1;
        MEET:
        add.u32 %a2, %a2, 1000;
        st.global.u32 [%out], %a2;
    ";
    let expected: Vec<_> = (0..40)
        .map(|tid| [1001, 1010, 1100, 1100][tid % 4])
        .collect();
    assert_eq!(words(body, 1, 40, &[]), expected);
}

/// Each lane runs as many iterations as its number: 1 + 2 + ... + tid.
#[test]
fn loops_of_different_lengths() {
    let body = "
        mov.u32 %a1, 0;
        mov.u32 %a2, 0;
        LOOP:
        setp.ge.u32 %p0, %a1, %tid;
        @%p0 bra END;
        add.u32 %a1, %a1, 1;
        add.u32 %a2, %a2, %a1;
        bra.uni LOOP;
        END:
        st.global.u32 [%out], %a2;
    ";
    let expected: Vec<_> = (0..64).map(|tid| tid * (tid + 1) / 2).collect();
    assert_eq!(words(body, 1, 64, &[]), expected);
}

/// Lanes that exit early do not block the others.
#[test]
fn lanes_that_exit_early() {
    let body = "
        setp.ge.u32 %p0, %tid, 10;
        @%p0 ret;
        setp.lt.u32 %p1, %tid, 4;
        @%p1 exit;
        st.global.u32 [%out], %tid;
    ";
    let expected: Vec<_> = (0..40)
        .map(|tid| if (4..10).contains(&tid) { tid } else { 0 })
        .collect();
    assert_eq!(words(body, 1, 40, &[]), expected);
}

/// After a barrier a warp reads the values that another warp wrote before it.
#[test]
fn barriers_of_the_block() {
    let body = "
        .shared .align 4 .b8 table[512];
        mov.u64 %x0, table;
        mul.wide.u32 %x1, %tid, 4;
        add.u64 %x1, %x0, %x1;
        st.shared.u32 [%x1], %i;
        bar.sync 0;
        mov.u32 %a1, 127;
        sub.u32 %a1, %a1, %tid;
        mul.wide.u32 %x2, %a1, 4;
        add.u64 %x2, %x0, %x2;
        ld.shared.u32 %a2, [%x2];
        barrier.sync 0;
        st.shared.u32 [%x1], %a2;
        st.global.u32 [%out], %a2;
    ";
    let expected: Vec<_> = (0..3)
        .flat_map(|block| (0..128).map(move |tid| 128 * block + 127 - tid))
        .collect();
    assert_eq!(words(body, 3, 128, &[]), expected);
}

/// Fences have no effect, because accesses are executed in program order.
#[test]
fn fences() {
    let body = "
        st.global.u32 [%out], 1;
        membar.cta; membar.gl; membar.sys;
        fence.acq_rel.gpu; fence.sc.cta;
        ld.global.u32 %a1, [%out];
        add.u32 %a1, %a1, 1;
        st.global.u32 [%out], %a1;
    ";
    assert_eq!(words(body, 1, 2, &[]), [2, 2]);
}

/// One barrier includes only the first two warps; at the other some warps arrive without waiting.
#[test]
fn barriers_of_some_warps() {
    let body = "
        .shared .align 4 .b8 table[512];
        mov.u64 %x0, table;
        mul.wide.u32 %x1, %tid, 4;
        add.u64 %x1, %x0, %x1;
        mov.u32 %a2, 7;
        setp.ge.u32 %p0, %tid, 64;
        @%p0 bra THIRD;
        st.shared.u32 [%x1], %tid;
        bar.sync 1, 64;
        xor.b32 %a1, %tid, 32;
        mul.wide.u32 %x2, %a1, 4;
        add.u64 %x2, %x0, %x2;
        ld.shared.u32 %a2, [%x2];
        bar.arrive 2, 96;
        bra END;
        THIRD:
        bar.sync 2, 96;
        ld.shared.u32 %a2, [%x0+-256];
        END:
        st.global.u32 [%out], %a2;
    ";
    let body = body.replace("[%x0+-256]", "[%x1+-256]");
    let expected: Vec<_> = (0..96)
        .map(|tid| if tid < 64 { tid ^ 32 } else { tid - 64 })
        .collect();
    assert_eq!(words(&body, 1, 96, &[]), expected);
}

/// A kernel may end without `ret`, and nested scopes may declare registers.
#[test]
fn scopes() {
    let body = "
        mov.u32 %a1, 1;
        { .reg .b32 %a1, t; mov.u32 %a1, 5; add.u32 t, %a1, 1; L: st.global.u32 [%out], t; }
        { .reg .b32 t; L: add.u32 t, %a1, 8; st.global.u32 [%out+4], t; }
    ";
    assert_eq!(words(body, 1, 1, &[]), [9 << 32 | 6]);
}
