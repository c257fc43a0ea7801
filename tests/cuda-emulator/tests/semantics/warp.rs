//! Collective operations of a warp: shuffles, votes and barriers.

use crate::harness::run;

const FULL: u32 = 0xffff_ffff;

/// Evaluates the manual's pseudocode for a lane. Returns the lane that it reads, and whether that lane is in range.
fn source(mode: &str, lane: i64, b: i64, c: i64) -> (i64, u64) {
    let (bval, cval, mask) = (b & 31, c & 31, c >> 8 & 31);
    let max = (lane & mask) | (cval & !mask);
    let min = lane & mask;
    let (j, valid) = match mode {
        "up" => (lane - bval, lane - bval >= max),
        "down" => (lane + bval, lane + bval <= max),
        "bfly" => (lane ^ bval, lane ^ bval <= max),
        "idx" => {
            let j = min | (bval & !mask);
            (j, j <= max)
        }
        other => panic!("{other}"),
    };
    (if valid { j } else { lane }, valid.into())
}

/// Runs a shuffle in which lane l has the value 100 + l.
fn shuffle(opcode: &str, b: i64, c: i64) -> Vec<u64> {
    let body = format!(
        "add.u32 %a1, %tid, 100;
         mov.u32 %b0, {b}; mov.u32 %c0, {c}; mov.u32 %d0, -1;
         {opcode} %a2|%p0, %a1, %b0, %c0, %d0;
         {opcode} %a3, %a1, {b}, {c}, -1;
         selp.u32 %a4, 1, 0, %p0;
         mul.wide.u32 %x0, %i, 24;
         add.u64 %out, %out, %x0;
         st.global.u32 [%out], %a2;
         st.global.u32 [%out+8], %a4;
         st.global.u32 [%out+16], %a3;"
    );
    run(&body, 1, 32, &[], 96)
}

#[test]
fn shuffles_with_clamps_and_segments() {
    for opcode in [
        "shfl.sync.up.b32",
        "shfl.sync.down.b32",
        "shfl.sync.bfly.b32",
        "shfl.sync.idx.b32",
    ] {
        let mode = opcode.split('.').nth(2).expect("a mode");
        // Whole warps, segments of 16 and of 8, and a clamp in the middle.
        for c in [0x1f, 0, 0x101f, 0x1000, 0x181f, 0x1800, 0x0f] {
            for b in [0, 1, 2, 7, 16, 31, 33] {
                let output = shuffle(opcode, b, c);
                for lane in 0..32 {
                    let (from, valid) = source(mode, lane, b, c);
                    let value = 100 + from as u64;
                    let found = &output[3 * lane as usize..][..3];
                    assert_eq!(
                        found,
                        [value, valid, value],
                        "{opcode} {b}, {c:#x}, lane {lane}"
                    );
                }
            }
        }
    }
}

/// Expected results computed by hand: down by 16 in a whole warp, exchange within pairs, and broadcast of lane 5.
#[test]
fn shuffles_with_results_computed_by_hand() {
    let column = |output: &[u64], column: usize| -> Vec<u64> {
        output.chunks(3).map(|row| row[column]).collect()
    };
    let down = shuffle("shfl.sync.down.b32", 16, 31);
    let expected: Vec<_> = (0..32)
        .map(|lane| if lane < 16 { 116 + lane } else { 100 + lane })
        .collect();
    assert_eq!(column(&down, 0), expected);
    assert_eq!(column(&down, 1), [[1; 16], [0; 16]].concat());
    let across = shuffle("shfl.sync.bfly.b32", 1, 31);
    let expected: Vec<_> = (0..16)
        .flat_map(|pair| [101 + 2 * pair, 100 + 2 * pair])
        .collect();
    assert_eq!(column(&across, 0), expected);
    assert_eq!(column(&shuffle("shfl.sync.idx.b32", 5, 31), 0), [105; 32]);
    // Up by one, the first lane is out of range and keeps its value.
    let up = shuffle("shfl.sync.up.b32", 1, 0);
    assert_eq!(up[..6], [100, 0, 100, 100, 1, 100]);
}

/// Lanes of one mask wait for each other on any path, but not for other lanes.
#[test]
fn shuffles_of_some_lanes() {
    let body = "
        add.u32 %a1, %tid, 100;
        and.b32 %a2, %tid, 1;
        setp.eq.u32 %p0, %a2, 0;
        @%p0 bra EVEN;
        shfl.sync.bfly.b32 %a3, %a1, 2, 31, 0xaaaaaaaa;
        bra DONE;
        EVEN:
        shfl.sync.idx.b32 %a3, %a1, 4, 31, 0x55555555;
        DONE:
        mul.wide.u32 %x0, %i, 8;
        add.u64 %out, %out, %x0;
        st.global.u32 [%out], %a3;
    ";
    let expected: Vec<_> = (0..32_u64)
        .map(|lane| if lane % 2 == 0 { 104 } else { 100 + (lane ^ 2) })
        .collect();
    assert_eq!(run(body, 1, 32, &[], 32), expected);
}

/// The lower half of the warp waits for the upper half, which arrives later.
#[test]
fn shuffles_wait_for_their_mask() {
    let body = format!(
        "mov.u32 %a1, %tid;
         setp.lt.u32 %p0, %tid, 16;
         @%p0 bra JOIN;
         mul.lo.u32 %a1, %a1, 3;
         JOIN:
         shfl.sync.bfly.b32 %a2, %a1, 16, 31, {FULL:#x};
         mul.wide.u32 %x0, %i, 8;
         add.u64 %out, %out, %x0;
         st.global.u32 [%out], %a2;"
    );
    let expected: Vec<_> = (0..32_u64)
        .map(|lane| {
            if lane < 16 {
                3 * (lane + 16)
            } else {
                lane - 16
            }
        })
        .collect();
    assert_eq!(run(&body, 1, 32, &[], 32), expected);
}

/// Two warps, the second with 8 lanes. Each votes separately, and missing lanes are not counted.
#[test]
fn votes() {
    let body = "
        setp.lt.u32 %p0, %tid, 8;
        mov.u32 %a1, -1;
        setp.lt.u32 %p1, %tid, 32;
        selp.u32 %a1, 0xffffffff, 0x000000ff, %p1;
        vote.sync.any.pred %q0, %p0, %a1;
        vote.sync.all.pred %q1, %p0, %a1;
        vote.sync.uni.pred %q2, %p0, %a1;
        vote.sync.any.pred %q3, !%p0, %a1;
        vote.sync.all.pred %q4, !%p0, %a1;
        vote.sync.ballot.b32 %a2, %p0, %a1;
        vote.sync.ballot.b32 %a3, !%p0, %a1;
        mul.wide.u32 %x0, %i, 56;
        add.u64 %out, %out, %x0;
        selp.u32 %b0, 1, 0, %q0; st.global.u32 [%out], %b0;
        selp.u32 %b0, 1, 0, %q1; st.global.u32 [%out+8], %b0;
        selp.u32 %b0, 1, 0, %q2; st.global.u32 [%out+16], %b0;
        selp.u32 %b0, 1, 0, %q3; st.global.u32 [%out+24], %b0;
        selp.u32 %b0, 1, 0, %q4; st.global.u32 [%out+32], %b0;
        st.global.u32 [%out+40], %a2;
        st.global.u32 [%out+48], %a3;
    ";
    let output = run(body, 1, 40, &[], 7 * 40);
    for (thread, found) in output.chunks(7).enumerate() {
        let expected = match thread {
            0..32 => [1, 0, 0, 1, 0, 0xff, 0xffff_ff00],
            _ => [0, 0, 1, 1, 1, 0, 0xff],
        };
        assert_eq!(found, expected, "thread {thread}");
    }
}

#[test]
fn activemask() {
    let body = "
        setp.lt.u32 %p0, %tid, 5;
        activemask.b32 %a1;
        @%p0 activemask.b32 %a1;
        bar.warp.sync 0xffffffff;
        mul.wide.u32 %x0, %i, 8;
        add.u64 %out, %out, %x0;
        st.global.u32 [%out], %a1;
    ";
    let output = run(body, 1, 32, &[], 32);
    let all = u64::from(FULL);
    assert_eq!(output[..6], [31, 31, 31, 31, 31, all]);
}
