// How packed blocks are read: where codes and scales lie, and the tables that the codes index.
// tests/test_shaders_tables.py holds the tables to tqlab.codebook.
#include "common.h"

constant float TABLE_TQ4[16] = {
    -2.732590f, -2.069017f, -1.618046f, -1.256231f, -0.942340f, -0.656759f, -0.388048f, -0.128395f,
    0.128395f,  0.388048f,  0.656759f,  0.942340f,  1.256231f,  1.618046f,  2.069017f,  2.732590f};
constant float TABLE_TQ3[8] = {-1.996684f, -1.291398f, -0.740341f, -0.247508f,
                               0.230106f,  0.725222f,  1.277503f,  1.988943f};
constant float TABLE_TURBO2[4] = {-0.133462f, -0.039994f, 0.039994f, 0.133462f};
constant float TABLE_TURBO3[8] = {-0.190685f, -0.117832f, -0.065717f, -0.021460f,
                                  0.021460f,  0.065717f,  0.117832f,  0.190685f};
constant float TABLE_TURBO4[16] = {
    -0.173926f, -0.117195f, -0.089527f, -0.068756f, -0.051262f, -0.035597f, -0.020989f, -0.006938f,
    0.006938f,  0.020989f,  0.035597f,  0.051262f,  0.068756f,  0.089527f,  0.117195f,  0.173926f};
// Lloyd-Max for N(0, 1) over sqrt(128), all digits of a float.
constant float TABLE_TURBO4_LM[16] = {-0.24152908f, -0.18287702f,  -0.14301644f, -0.1110362f,
                                      -0.08329192f, -0.058049854f, -0.03429895f, -0.011348625f,
                                      0.011348625f, 0.03429895f,   0.058049854f, 0.08329192f,
                                      0.1110362f,   0.14301644f,   0.18287702f,  0.24152908f};

// Four codes of BITS bits, lowest first, through a table.
template <int BITS>
inline float4 look_up(constant const float* table, uint codes) {
  const uint mask = (1u << BITS) - 1;
  return float4(table[codes & mask], table[codes >> BITS & mask], table[codes >> 2 * BITS & mask],
                table[codes >> 3 * BITS & mask]);
}

// ---- weights: blocks of 32 values with two scales ---------------------------------------------
// Read eight values (a chunk, 0 .. 3) at a time. Blocks start at multiples of four bytes.
struct tq4_1s {
  enum { BYTES = 20, BITS = 4 };
  static float scale(device const uchar* block, uint chunk) {
    return float(((device const half*)block)[chunk >> 1]);
  }
  static uint codes(device const uchar* block, uint chunk) {
    return ((device const uint*)(block + 4))[chunk];
  }
  static float4 values(uint codes) { return look_up<4>(TABLE_TQ4, codes); }
};
struct tq3_1s {
  enum { BYTES = 16, BITS = 3 };
  static float scale(device const uchar* block, uint chunk) {
    return float(((device const half*)block)[chunk >> 1]);
  }
  static uint codes(device const uchar* block, uint chunk) {
    device const uchar* from = block + 4 + 3 * chunk;
    return uint(from[0]) | uint(from[1]) << 8 | uint(from[2]) << 16;
  }
  static float4 values(uint codes) { return look_up<3>(TABLE_TQ3, codes); }
};

// ---- keys and values ----------------------------------------------------------------------------
// Read four values (a quad) at a time, to be multiplied by the block's scale. Blocks start at
// multiples of two bytes. Rotated formats stay in the rotated domain.
struct f16 {
  enum { BLOCK = 32, BYTES = 64 };
  static float scale(device const uchar*) { return 1.0f; }
  static float4 quad(device const uchar* block, uint q) {
    return load4((device const half*)block + 4 * q);
  }
};
struct q8_0 {
  enum { BLOCK = 32, BYTES = 34 };
  static float scale(device const uchar* block) { return float(*(device const half*)block); }
  static float4 quad(device const uchar* block, uint q) {
    return load4((device const char*)(block + 2) + 4 * q);
  }
};
// Turbo blocks hold N = 128 or 64 values.
template <int N>
struct turbo2_of {
  enum { BLOCK = N, BYTES = 2 + N / 4 };
  static float scale(device const uchar* block) { return float(*(device const half*)block); }
  static float4 quad(device const uchar* block, uint q) {
    return look_up<2>(TABLE_TURBO2, block[2 + q]);
  }
};
template <int N>
struct turbo3_of {
  enum { BLOCK = N, BYTES = 2 + 3 * N / 8, TOP = 2 + N / 4 };
  static float scale(device const uchar* block) { return float(*(device const half*)block); }
  // Two low bits of each index, and the top bits elsewhere.
  static float4 quad(device const uchar* block, uint q) {
    const uint low = block[2 + q], top = uint(block[TOP + (q >> 1)]) >> 4 * (q & 1);
    const uint4 index = (uint4(low) >> uint4(0, 2, 4, 6) & uint4(3)) |
                        (uint4(top) >> uint4(0, 1, 2, 3) & uint4(1)) << 2;
    return float4(TABLE_TURBO3[index.x], TABLE_TURBO3[index.y], TABLE_TURBO3[index.z],
                  TABLE_TURBO3[index.w]);
  }
};
struct turbo4 {
  enum { BLOCK = 128, BYTES = 68 };
  static float scale(device const uchar* block) { return float(*(device const half*)block); }
  static float4 quad(device const uchar* block, uint q) {
    return look_up<4>(TABLE_TURBO4, ((device const ushort*)(block + 4))[q]);
  }
};
template <int N>
struct turbo4_lm_of {
  enum { BLOCK = N, BYTES = 2 + N / 2 };
  static float scale(device const uchar* block) { return float(*(device const half*)block); }
  static float4 quad(device const uchar* block, uint q) {
    return look_up<4>(TABLE_TURBO4_LM, ((device const ushort*)(block + 2))[q]);
  }
};
typedef turbo2_of<128> turbo2;
typedef turbo3_of<128> turbo3;
typedef turbo4_lm_of<128> turbo4_lm;
typedef turbo2_of<64> turbo2_h64;
typedef turbo3_of<64> turbo3_h64;
typedef turbo4_lm_of<64> turbo4_lm_h64;
