//! Faults. Each names the kernel, the line and, if one lane is at fault, the lane.

use crate::harness::{HEAD, alone, launch_test, try_run};

/// The line of the first instruction of a body in the text that the harness writes.
const FIRST_LINE: usize = 17;

const ILLEGAL_ADDRESS: &str = "700";
const ILLEGAL_INSTRUCTION: &str = "715";
const MISALIGNED: &str = "716";
const LAUNCH_FAILED: &str = "719";

/// A body whose line with `// here` must fault.
struct Faulty<'a> {
    body: &'a str,
    grid: usize,
    block: usize,
}

impl<'a> Faulty<'a> {
    fn new(block: usize, body: &'a str) -> Self {
        Self {
            body,
            grid: 1,
            block,
        }
    }

    fn line(&self, marker: &str) -> usize {
        let at = self.body.lines().position(|line| line.contains(marker));
        FIRST_LINE + at.expect("a line with the marker")
    }

    /// Returns the text of the fault, which must have this code and name the line.
    #[track_caller]
    fn text(&self, code: &str) -> String {
        let text = match try_run(self.body, self.grid, self.block, &[1, 2, 3], 4) {
            Ok(_) => panic!("no fault:\n{}", self.body),
            Err(text) => text,
        };
        let start = format!(
            "{code}: kernel test, line {}: CTA (0, 0, 0)",
            self.line("// here")
        );
        assert!(text.starts_with(&start), "{text}\n{start}");
        text
    }

    #[track_caller]
    fn check(&self, code: &str, parts: &[&str]) {
        let text = self.text(code);
        for part in parts {
            assert!(text.contains(part), "{text}: {part}");
        }
    }
}

#[test]
fn accesses_out_of_bounds() {
    // There are four words of output, for lanes 0 to 3.
    Faulty::new(
        32,
        "mul.wide.u32 %x0, %i, 8;
         add.u64 %x0, %out, %x0;
         st.global.u64 [%x0], %x0; // here",
    )
    .check(ILLEGAL_ADDRESS, &["warp 0, lane 4:", "writes 8 bytes"]);
    Faulty::new(1, "ld.global.u64 %x0, [%in+24]; // here")
        .check(ILLEGAL_ADDRESS, &["lane 0:", "reads 8 bytes"]);
    Faulty::new(1, "ld.global.u32 %a0, [%in+-4]; // here").check(ILLEGAL_ADDRESS, &["lane 0:"]);
    // The end of the 16 bytes is out of bounds.
    Faulty::new(1, "ld.global.v2.u64 {%x0, %x1}, [%in+16]; // here")
        .check(ILLEGAL_ADDRESS, &["lane 0:"]);
    Faulty::new(1, "mov.u64 %x0, 0;\nld.global.u8 %a0, [%x0]; // here")
        .check(ILLEGAL_ADDRESS, &["at 0x0"]);
    Faulty::new(1, "red.global.add.u32 [%out+32], 1; // here")
        .check(ILLEGAL_ADDRESS, &["updates 4 bytes"]);
    Faulty::new(
        64,
        ".shared .b32 words[40];
         mov.u32 %a0, words;
         shl.b32 %a1, %tid, 2;
         add.u32 %a0, %a0, %a1;
         st.shared.u32 [%a0], 1; // here",
    )
    .check(
        ILLEGAL_ADDRESS,
        &["warp 1, lane 8:", "shared memory, which has 160"],
    );
    Faulty::new(1, ".local .b32 word;\nst.local.u32 [word+4], 1; // here")
        .check(ILLEGAL_ADDRESS, &["local"]);
    Faulty::new(1, "ld.param.u64 %x0, [out+8]; // here").check(ILLEGAL_ADDRESS, &["parameters"]);
}

#[test]
fn misaligned_accesses() {
    Faulty::new(
        2,
        "shl.b32 %a0, %tid, 1;
         cvt.u64.u32 %x0, %a0;
         add.u64 %x0, %out, %x0;
         st.global.u32 [%x0], 1; // here",
    )
    .check(MISALIGNED, &["lane 1:", "no multiple of 4"]);
    // A vector must be aligned as a whole.
    Faulty::new(1, "ld.global.v2.u64 {%x0, %x1}, [%in+8]; // here")
        .check(MISALIGNED, &["lane 0:", "16"]);
    Faulty::new(1, "ld.global.v4.u8 {%h0, %h1, %h2, %h3}, [%in+2]; // here")
        .check(MISALIGNED, &["4"]);
    Faulty::new(1, "red.global.add.u64 [%out+4], 1; // here").check(MISALIGNED, &["8"]);
    Faulty::new(
        1,
        ".shared .align 8 .b8 bytes[16];\nst.shared.u16 [bytes+1], 1; // here",
    )
    .check(MISALIGNED, &["2"]);
    Faulty::new(
        1,
        ".local .align 8 .b8 bytes[16];\nst.local.u16 [bytes+1], 1; // here",
    )
    .check(MISALIGNED, &["2"]);
}

#[test]
fn reads_of_unwritten_memory() {
    let global = format!(
        "{HEAD}.visible .global .align 4 .u32 zero;
        .visible .entry test(.param .u64 in, .param .u64 out) {{
        .reg .b64 %out; .reg .b32 %a; ld.param.u64 %out, [out];
        ld.global.u32 %a, [zero]; st.global.u32 [%out], %a; ret; }}"
    );
    // Variables of a module are initialized with zeros.
    assert_eq!(launch_test(&global, 1, 1, &[], 1), Ok(vec![0]));
    // Memory that is allocated but not written.
    let text = format!(
        "{HEAD}.visible .entry test(.param .u64 in, .param .u64 out) {{
        .reg .b64 %in; .reg .b32 %a; ld.param.u64 %in, [in];
        ld.global.u32 %a, [%in+4]; ret; }}"
    );
    let fault = launch_test(&text, 1, 1, &[], 1).expect_err("never written");
    let start = "719: kernel test, line 6: CTA (0, 0, 0), warp 0, lane 0: reads the byte";
    assert!(
        fault.starts_with(start) && fault.contains("never written (offset 4"),
        "{fault}"
    );
    Faulty::new(
        32,
        ".shared .align 4 .b8 bytes[128];
         mov.u32 %a0, bytes;
         shl.b32 %a1, %tid, 2;
         add.u32 %a0, %a0, %a1;
         setp.ne.u32 %p0, %tid, 5;
         @%p0 st.shared.u32 [%a0], 1;
         ld.shared.u32 %a2, [%a0]; // here",
    )
    .check(
        LAUNCH_FAILED,
        &[
            "lane 5:",
            "byte 20 of shared memory, which was never written",
        ],
    );
    Faulty::new(
        1,
        ".shared .u32 word;\nred.shared.add.u32 [word], 1; // here",
    )
    .check(LAUNCH_FAILED, &["never written"]);
    Faulty::new(1, ".local .u32 word;\nld.local.u32 %a0, [word]; // here")
        .check(LAUNCH_FAILED, &["never written"]);
}

/// The shared memory of each CTA counts as unwritten, even if an earlier CTA wrote it.
#[test]
fn reads_of_shared_memory_of_an_earlier_block() {
    let faulty = Faulty {
        grid: 2,
        ..Faulty::new(
            1,
            ".shared .u32 word;
             setp.eq.u32 %p0, %i, 0;
             @%p0 st.shared.u32 [word], 1;
             ld.shared.u32 %a0, [word];",
        )
    };
    let text = try_run(faulty.body, 2, 1, &[], 1).expect_err("never written");
    assert!(
        text.contains("CTA (1, 0, 0)") && text.contains("never written"),
        "{text}"
    );
}

#[test]
fn use_after_free() {
    use crate::api::*;
    let _alone = alone();
    let context = Context::new();
    let increment = context.function("increment");
    let (first, second) = (context.alloc(128), context.alloc(128));
    ok!(cuMemsetD8_v2(second, 0, 128));
    ok!(cuMemFree_v2(second));
    assert_eq!(launch(increment, 32, DEFAULT_STREAM, first, second), 0);
    fails!(700, cuCtxSynchronize());
    let text = text_of(lionEmulatorLastFault);
    let line = 1 + PTX
        .lines()
        .position(|line| line.contains("ld.global.u32"))
        .expect("a load");
    let start = format!("kernel increment, line {line}: CTA (0, 0, 0), warp 0, lane 0: ");
    assert!(
        text.starts_with(&start) && text.contains("use after free"),
        "{text}"
    );
}

#[test]
fn writes_to_constant_memory() {
    let text = format!(
        "{HEAD}.const .align 4 .u32 seven = 7;
        .visible .entry test(.param .u64 in, .param .u64 out) {{
        .reg .b64 %x; mov.u64 %x, seven; cvta.const.u64 %x, %x;
        st.u32 [%x], 8; ret; }}"
    );
    let fault = launch_test(&text, 1, 1, &[], 1).expect_err("constant");
    assert!(
        fault.starts_with("700: kernel test, line 7:") && fault.contains("constant memory"),
        "{fault}"
    );
}

#[test]
fn races_on_shared_memory() {
    // The second warp reads a word that the first one writes, without a barrier in between.
    Faulty::new(
        64,
        ".shared .align 4 .b8 bytes[256];
         mov.u32 %a0, bytes;
         shl.b32 %a1, %tid, 2;
         add.u32 %a1, %a0, %a1;
         st.shared.u32 [%a1], %tid;
         xor.b32 %a2, %tid, 32;
         shl.b32 %a2, %a2, 2;
         add.u32 %a2, %a0, %a2;
         setp.lt.u32 %p0, %tid, 32;
         @%p0 ret;
         ld.shared.u32 %a3, [%a2]; // here",
    )
    .check(LAUNCH_FAILED, &["warp 1, lane 0:", "race", "reads"]);
    // Both warps write.
    Faulty::new(64, ".shared .u32 word;\nst.shared.u32 [word], 1; // here")
        .check(LAUNCH_FAILED, &["warp 1", "race", "writes"]);
    // An atomic and a read.
    Faulty::new(
        64,
        ".shared .u32 word;
         setp.lt.u32 %p0, %tid, 32;
         @!%p0 bra LATER;
         st.shared.u32 [word], 1;
         LATER:
         bar.sync 0;
         @%p0 red.shared.add.u32 [word], 1;
         @!%p0 ld.shared.u32 %a0, [word]; // here",
    )
    .check(LAUNCH_FAILED, &["warp 1, lane 0:", "race"]);
    // A lane reads a word that another lane of the warp wrote, without a warp barrier in between.
    let together = ".shared .align 4 .b8 bytes[128];
         mov.u32 %a0, bytes;
         shl.b32 %a1, %tid, 2;
         add.u32 %a1, %a0, %a1;
         st.shared.u32 [%a1], %tid;
         bar.warp.sync 0xffffffff;
         xor.b32 %a2, %tid, 1;
         shl.b32 %a2, %a2, 2;
         add.u32 %a2, %a0, %a2;
         ld.shared.u32 %a3, [%a2]; // here";
    assert_eq!(try_run(together, 1, 32, &[], 0), Ok(vec![]));
    let apart = together.replace("bar.warp.sync 0xffffffff;", "");
    Faulty::new(32, &apart).check(LAUNCH_FAILED, &["lane 0:", "race", "reads"]);
    // Two lanes of one instruction write different values to one address.
    Faulty::new(2, ".shared .u32 word;\nst.shared.u32 [word], %tid; // here")
        .check(LAUNCH_FAILED, &["lane 1:", "race"]);
}

#[test]
fn races_on_global_memory() {
    // The two warps of a block.
    let faulty = Faulty::new(
        64,
        "setp.lt.u32 %p0, %tid, 32;
         @%p0 st.global.u32 [%out], 1; // there
         @!%p0 ld.global.u32 %a0, [%out]; // here",
    );
    let there = format!("line {}", faulty.line("// there"));
    faulty.check(LAUNCH_FAILED, &["warp 1, lane 0:", "race", &there]);
    // Two lanes of one instruction.
    Faulty::new(2, "st.global.u32 [%out], %tid; // here")
        .check(LAUNCH_FAILED, &["lane 1:", "race"]);
    // Two blocks, which are not ordered.
    let body = "
        st.global.u32 [%out], 1;
    ";
    let text = try_run(body, 2, 1, &[], 1).expect_err("a race");
    let line = FIRST_LINE + 1;
    assert!(
        text.starts_with(&format!("719: kernel test, line {line}: CTA (1, 0, 0)")),
        "{text}"
    );
    assert!(
        text.contains("race") && text.contains("CTA (0, 0, 0)"),
        "{text}"
    );
}

#[test]
fn barriers_that_some_lanes_do_not_reach() {
    // The second warp has exited.
    Faulty::new(
        64,
        "setp.ge.u32 %p0, %tid, 32;
         @%p0 ret;
         bar.sync 0; // here",
    )
    .check(LAUNCH_FAILED, &["barrier"]);
    // Half of a warp waits, and the other half has exited.
    Faulty::new(
        32,
        "setp.ge.u32 %p0, %tid, 16;
         @%p0 ret;
         bar.sync 0; // here",
    )
    .check(
        LAUNCH_FAILED,
        &["lanes 0 to 15", "lanes 16 to 31 have exited"],
    );
    // Two warps at different barriers.
    let body = "
        setp.lt.u32 %p0, %tid, 32;
        @%p0 bra OTHER;
        bar.sync 1;
        ret;
        OTHER:
        bar.sync 2;
    ";
    let text = try_run(body, 1, 64, &[], 1).expect_err("no end");
    assert!(
        text.contains("barrier 1") && text.contains("barrier 2"),
        "{text}"
    );
    Faulty::new(32, "bar.sync 16; // here").check(LAUNCH_FAILED, &["barrier 16"]);
    Faulty::new(64, "bar.sync 0, 33; // here").check(LAUNCH_FAILED, &["33"]);
}

#[test]
fn masks_that_do_not_match_the_lanes() {
    // Lane 31 never arrives.
    Faulty::new(
        32,
        "setp.eq.u32 %p0, %tid, 31;
         @%p0 ret;
         shfl.sync.bfly.b32 %a0, %tid, 1, 31, 0xffffffff; // here",
    )
    .check(LAUNCH_FAILED, &["lanes 0 to 30", "lanes 31 have exited"]);
    // A block of 16 threads has no upper lanes.
    Faulty::new(16, "vote.sync.any.pred %p0, %p0, 0xffffffff; // here")
        .check(LAUNCH_FAILED, &["16 to 31"]);
    // A lane that is not in its own mask.
    Faulty::new(
        32,
        "shfl.sync.idx.b32 %a0, %tid, 0, 31, 0x7fffffff; // here",
    )
    .check(LAUNCH_FAILED, &["lane 31", "mask"]);
    // Lanes with different masks.
    Faulty::new(
        32,
        "setp.lt.u32 %p0, %tid, 16;
         selp.b32 %a1, 0xffffffff, 0xffff0000, %p0;
         vote.sync.any.pred %q0, %p0, %a1; // here",
    )
    .check(LAUNCH_FAILED, &["lane 16", "mask"]);
    // A shuffle that reads a lane outside the mask.
    Faulty::new(
        32,
        "setp.ge.u32 %p0, %tid, 16;
         @%p0 ret;
         shfl.sync.idx.b32 %a0, %tid, 20, 31, 0x0000ffff; // here",
    )
    .check(LAUNCH_FAILED, &["lane 0:", "lane 20"]);
    Faulty::new(
        32,
        "setp.ge.u32 %p0, %tid, 16;
         @%p0 ret;
         bar.warp.sync 0x1ffff; // here",
    )
    .check(LAUNCH_FAILED, &["16 to 31 have exited"]);
}

#[test]
fn divergent_uniform_branches() {
    Faulty::new(
        32,
        "setp.lt.u32 %p0, %tid, 8;
         @%p0 bra.uni END; // here
         END:",
    )
    .check(LAUNCH_FAILED, &["lanes 0 to 7"]);
}

#[test]
fn traps_and_endless_loops() {
    Faulty::new(
        8,
        "setp.eq.u32 %p0, %tid, 3;
         @%p0 trap; // here",
    )
    .check(ILLEGAL_INSTRUCTION, &["lane 3:", "trap"]);
}

/// Unknown instructions are refused when the module is loaded.
#[test]
fn unknown_instructions() {
    let mut wrong = Vec::new();
    for (instruction, about) in [
        ("frobnicate.u32 %a0, %a1, %a2;", "frobnicate.u32"),
        ("add.u33 %a0, %a1, %a2;", "add.u33"),
        ("add.rn.u32 %a0, %a1, %a2;", "add.rn.u32"),
        // The results are not those of IEEE 754, or the assembler may choose them.
        ("div.approx.f32 %f0, %f1, %f2;", "div.approx.f32"),
        ("add.ftz.f32 %f0, %f1, %f2;", "add.ftz.f32"),
        ("add.f32 %f0, %f1, %f2;", "add.f32"),
        ("mul.f32 %f0, %f1, %f2;", "mul.f32"),
        ("sin.approx.f32 %f0, %f1;", "sin.approx.f32"),
        // Without a mask.
        ("shfl.bfly.b32 %a0, %a1, 1, 31;", "shfl.bfly.b32"),
        ("vote.any.pred %p0, %p1;", "vote.any.pred"),
        // Too few or too many operands, or operands of the wrong size or kind.
        ("add.u32 %a0, %a1;", "add.u32"),
        ("add.u32 %a0, %a1, %a2, %a3;", "add.u32"),
        ("add.u32 %a0, %x1, %a2;", "add.u32"),
        ("add.u64 %x0, %x1, %a2;", "add.u64"),
        ("add.u32 1, %a1, %a2;", "add.u32"),
        ("add.u32 %tid.x, %a1, %a2;", "add.u32"),
        ("add.rn.f32 %f0, %f1, 1;", "add.rn.f32"),
        ("add.u32 %a0, %a1, 0f3F800000;", "add.u32"),
        ("add.u32 %a0, %a1, %p0;", "add.u32"),
        ("and.pred %p0, %p1, %a0;", "and.pred"),
        ("selp.u32 %a0, 1, 0, %a1;", "selp.u32"),
        ("setp.lt.f32 %a0, %f0, %f1;", "setp.lt.f32"),
        ("setp.lo.s32 %p0, %a0, %a1;", "setp.lo.s32"),
        ("setp.ltu.u32 %p0, %a0, %a1;", "setp.ltu.u32"),
        ("setp.lt.and.s32 %p0, %a0, %a1;", "setp.lt.and.s32"),
        ("setp.lt.s32 %p0, %a0, %a1, %p1;", "setp.lt.s32"),
        (
            "setp.lt.and.s32 %p0, %a0, %a1, %p1, %p2;",
            "setp.lt.and.s32",
        ),
        ("cvt.f16.f32 %h0, %f0;", "cvt.f16.f32"),
        ("cvt.rn.f32.f16 %f0, %h0;", "cvt.rn.f32.f16"),
        ("cvt.s32.f32 %a0, %f0;", "cvt.s32.f32"),
        ("cvt.u64.u32 %a0, %a1;", "cvt.u64.u32"),
        ("ld.global.u32 %a0, %x0;", "ld.global.u32"),
        ("ld.global.v2.u32 %a0, [%x0];", "ld.global.v2.u32"),
        (
            "ld.global.v2.u32 {%a0, %a1, %a2}, [%x0];",
            "ld.global.v2.u32",
        ),
        (
            "ld.global.v4.u64 {%x0, %x1, %x2, %x3}, [%x0];",
            "ld.global.v4.u64",
        ),
        ("ld.global.u32 %h0, [%x0];", "ld.global.u32"),
        ("ld.global.u32 %a0, [%f0];", "ld.global.u32"),
        ("ld.global.u32 %a0, [in];", "ld.global.u32"),
        ("ld.shared.u32 %a0, [in];", "ld.shared.u32"),
        ("ld.u64 %x0, [in];", "ld.u64"),
        ("ld.global.u32 %a0, [%h0];", "ld.global.u32"),
        ("ld.global.u32 %f0, [%x0];", "ld.global.u32"),
        ("add.u32 %f0, %a1, %a2;", "add.u32"),
        ("cvt.rn.f32.u32 %f0, %f1;", "cvt.rn.f32.u32"),
        ("st.param.u64 [in], %x1;", "st.param.u64"),
        ("st.const.u32 [%x0], %a1;", "st.const.u32"),
        ("st.global.nc.u32 [%x0], %a1;", "st.global.nc.u32"),
        ("mov.b64 {%a0, %a1, %a2}, %x0;", "mov.b64"),
        ("mov.u64 %x0, {%a0, %a1};", "mov.u64"),
        ("lop3.b32 %a0, %a1, %a2, %a3, 256;", "lop3.b32"),
        ("red.global.exch.b32 [%x0], %a1;", "red.global.exch.b32"),
        ("bra.foo END; END:", "bra.foo"),
        ("bar.sync;", "bar.sync"),
    ] {
        let body = format!("\n{instruction}\n");
        let start = format!("kernel test, line {}: {about}:", FIRST_LINE + 1);
        match try_run(&body, 1, 1, &[], 1) {
            Ok(_) => wrong.push(format!("taken: {instruction}")),
            Err(text) if !text.starts_with(&start) => wrong.push(format!("{instruction}: {text}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
