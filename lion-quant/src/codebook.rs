//! The signed dynamic codebook: the values of the 256 codes.
//!
//! This is the signed dynamic map of bitsandbytes (`create_dynamic_map(signed=True)`; Dettmers et al.,
//! "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861). It has seven decades of magnitudes
//! with 1, 2, 4, ... 64 evenly spaced values each, in both signs; 0; and 1.0 without a negative
//! counterpart. The bits are copied from the file `qmap_signed.safetensors`. Computing the values with
//! `pow` gives different bits.

/// The code of 0.0.
pub const ZERO_CODE: u8 = 127;

/// The 129 magnitudes of the codebook in increasing order: 0, the 127 that occur with both signs, and 1.0.
///
/// The code of `MAGNITUDES[k]` is `127 + k`. The code of `-MAGNITUDES[k]` is `127 - k`, for `k < 128`.
pub const MAGNITUDES: [f32; 129] = {
    let mut magnitudes = [0.0; 129];
    let mut k = 0;
    while k < 129 {
        magnitudes[k] = f32::from_bits(MAGNITUDE_BITS[k]);
        k += 1;
    }
    magnitudes
};

/// The value of each code, in increasing order.
///
/// ```
/// use lion_quant::{CODEBOOK, ZERO_CODE};
/// assert_eq!(CODEBOOK[ZERO_CODE as usize], 0.0);
/// assert_eq!(CODEBOOK[255], 1.0);
/// assert!(CODEBOOK[0] > -1.0); // there is no -1.0
/// ```
pub const CODEBOOK: [f32; 256] = {
    let zero = ZERO_CODE as usize;
    let mut codebook = [0.0; 256];
    let mut k = 1;
    while k < 128 {
        codebook[zero - k] = -MAGNITUDES[k];
        codebook[zero + k] = MAGNITUDES[k];
        k += 1;
    }
    codebook[zero + k] = MAGNITUDES[k];
    codebook
};

/// The bits of [`MAGNITUDES`].
#[rustfmt::skip]
const MAGNITUDE_BITS: [u32; 129] = [
    0x0000_0000, 0x3513_A3B7, 0x365A_1A94, 0x3702_05FF, 0x37B2_4206, 0x3837_8034, 0x388A_EFB3, 0x38BA_1F4B,
    0x3923_D70B, 0x398C_E705, 0x39C7_E283, 0x3A01_6F01, 0x3A1E_ECC1, 0x3A3C_6A80, 0x3A59_E83E, 0x3A77_65FF,
    0x3AA7_EF9D, 0x3AF1_A9FC, 0x3B1D_B22D, 0x3B42_8F5C, 0x3B67_6C8A, 0x3B86_24DD, 0x3B98_9374, 0x3BAB_020D,
    0x3BBD_70A4, 0x3BCF_DF3B, 0x3BE2_4DD3, 0x3BF4_BC6A, 0x3C03_9581, 0x3C0C_CCCD, 0x3C16_0418, 0x3C1F_3B64,
    0x3C3A_E148, 0x3C68_F5C3, 0x3C8B_851F, 0x3CA2_8F5D, 0x3CB9_999A, 0x3CD0_A3D7, 0x3CE7_AE15, 0x3CFE_B852,
    0x3D0A_E148, 0x3D16_6667, 0x3D21_EB85, 0x3D2D_70A3, 0x3D38_F5C3, 0x3D44_7AE1, 0x3D50_0000, 0x3D5B_851F,
    0x3D67_0A3D, 0x3D72_8F5D, 0x3D7E_147B, 0x3D84_CCCD, 0x3D8A_8F5D, 0x3D90_51EB, 0x3D96_147B, 0x3D9B_D70A,
    0x3DA1_999A, 0x3DA7_5C2A, 0x3DAD_1EB8, 0x3DB2_E148, 0x3DB8_A3D7, 0x3DBE_6667, 0x3DC4_28F7, 0x3DC9_EB85,
    0x3DDB_3334, 0x3DF8_0000, 0x3E0A_6666, 0x3E18_CCCD, 0x3E27_3333, 0x3E35_999A, 0x3E44_0000, 0x3E52_6666,
    0x3E60_CCCD, 0x3E6F_3333, 0x3E7D_9999, 0x3E86_0000, 0x3E8D_3334, 0x3E94_6666, 0x3E9B_999A, 0x3EA2_CCCC,
    0x3EAA_0000, 0x3EB1_3333, 0x3EB8_6666, 0x3EBF_999A, 0x3EC6_CCCC, 0x3ECE_0000, 0x3ED5_3333, 0x3EDC_6666,
    0x3EE3_999A, 0x3EEA_CCCC, 0x3EF2_0000, 0x3EF9_3332, 0x3F00_3333, 0x3F03_CCCC, 0x3F07_6666, 0x3F0B_0000,
    0x3F0E_999A, 0x3F12_3334, 0x3F15_CCCD, 0x3F19_6666, 0x3F1D_0000, 0x3F20_999A, 0x3F24_3334, 0x3F27_CCCD,
    0x3F2B_6666, 0x3F2F_0000, 0x3F32_999A, 0x3F36_3334, 0x3F39_CCCD, 0x3F3D_6666, 0x3F41_0000, 0x3F44_999A,
    0x3F48_3333, 0x3F4B_CCCD, 0x3F4F_6666, 0x3F53_0000, 0x3F56_999A, 0x3F5A_3333, 0x3F5D_CCCD, 0x3F61_6666,
    0x3F65_0000, 0x3F68_999A, 0x3F6C_3333, 0x3F6F_CCCD, 0x3F73_6666, 0x3F77_0000, 0x3F7A_999A, 0x3F7E_3333,
    0x3F80_0000,
];
