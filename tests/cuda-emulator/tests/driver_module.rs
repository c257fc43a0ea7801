//! Loading PTX: the error codes of refused modules, and the kernels and variables of loaded ones.

mod api;

use api::*;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

fn load(text: &str) -> (u32, Handle) {
    let text = CString::new(text).expect("no NUL");
    let mut module = null_mut();
    // SAFETY: the text ends with NUL, and `module` is a live variable.
    let code = unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) };
    (code, module)
}

#[test]
fn kernels_and_variables_are_found_by_name() {
    let context = Context::new();
    let (code, module) = load(PTX);
    assert_eq!(code, 0);
    let (mut first, mut second) = (null_mut(), null_mut());
    ok!(cuModuleGetFunction(&mut first, module, c"store".as_ptr()));
    ok!(cuModuleGetFunction(&mut second, module, c"store".as_ptr()));
    assert_eq!(first, second);
    fails!(
        500,
        cuModuleGetFunction(&mut first, module, c"stor".as_ptr())
    );
    let (mut address, mut bytes) = (0, 0);
    ok!(cuModuleGetGlobal_v2(
        &mut address,
        &mut bytes,
        module,
        c"counter".as_ptr()
    ));
    assert_eq!(bytes, 4);
    assert_eq!(context.word(address), 7);
    fails!(
        500,
        cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"store".as_ptr())
    );
}

#[test]
fn newer_ptx_version_is_rejected() {
    let _context = Context::new();
    // Driver 12.0 supports PTX 8.0. The text after the version is not parsed.
    let newer = ".version 8.1\n.target sm_70\n.address_size 64\nnonsense of the future\n";
    assert_eq!(load(newer).0, 222);
    assert_eq!(load(&PTX.replace(".version 8.0", ".version 6.0")).0, 0);
}

#[test]
fn target_above_the_device_is_rejected() {
    let _context = Context::new();
    assert_eq!(load(&PTX.replace("sm_70", "sm_90")).0, 0);
    assert_eq!(load(&PTX.replace("sm_70", "sm_100")).0, 218);
}

#[test]
fn machine_code_is_rejected() {
    let _context = Context::new();
    assert_eq!(load("\u{7f}ELF").0, 209);
}

#[test]
fn parse_errors_are_written_to_the_log() {
    let _context = Context::new();
    let broken = CString::new(PTX.replace("%r<5>", "%r<five>")).expect("no NUL");
    let mut log = [0x55_u8; 400];
    // The error log buffer and its size, which is replaced by the number of bytes written.
    let options = [5_u32, 6];
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(log.len()),
    ];
    let mut module = null_mut();
    fails!(
        218,
        cuModuleLoadDataEx(
            &mut module,
            broken.as_ptr().cast(),
            2,
            options.as_ptr(),
            values.as_mut_ptr()
        )
    );
    assert!(module.is_null());
    let text = std::ffi::CStr::from_bytes_until_nul(&log).expect("a NUL");
    assert_eq!(values[1].addr(), text.to_bytes_with_nul().len());
    let text = text.to_str().expect("UTF-8");
    assert!(text.contains("five"), "{text}");
    let line = 1 + PTX
        .lines()
        .position(|line| line.contains("%r<5>"))
        .expect("declared");
    assert!(text.contains(&line.to_string()), "{text}");
}

#[test]
fn log_is_truncated_to_the_buffer() {
    let _context = Context::new();
    let mut log = [0x55_u8; 8];
    let options = [6_u32, 5];
    let mut values: [*mut c_void; 2] =
        [std::ptr::without_provenance_mut(4), log.as_mut_ptr().cast()];
    let text = CString::new(PTX.replace("sm_70", "sm_100")).expect("no NUL");
    fails!(
        218,
        cuModuleLoadDataEx(
            &mut null_mut(),
            text.as_ptr().cast(),
            2,
            options.as_ptr(),
            values.as_mut_ptr()
        )
    );
    assert_eq!(log[3..], [0, 0x55, 0x55, 0x55, 0x55]);
    assert_eq!(values[0].addr(), 4);
}

#[test]
fn module_files_are_loaded_or_reported_missing() {
    let _context = Context::new();
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/kernels.ptx");
    let here = CString::new(here).expect("no NUL");
    let mut module = null_mut();
    ok!(cuModuleLoad(&mut module, here.as_ptr()));
    fails!(
        301,
        cuModuleLoad(&mut module, c"/nowhere/kernels.ptx".as_ptr())
    );
    fails!(1, cuModuleLoadData(&mut module, std::ptr::null()));
}
