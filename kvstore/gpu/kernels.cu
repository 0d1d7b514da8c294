// CRC32C of bytes in GPU memory, and pages of a KV cache between a pool and blocks in host memory.
//
// Compiled at run time (kernels.py), without headers. tests/gpu/cuda_shim.h compiles the same text
// for the processor, where tests compare it with native/src/base/checksum.cpp. The records are those
// of native/src/gpu/kernels.h.
//
// A message is a polynomial, and its CRC the remainder by P. A warp takes a span of at most some
// KiB, in rows of 512 bytes, each lane 16 bytes of a row: what it has summed is moved on by a row
// (multiplied by x^4096) and added to the next 16 bytes. In the end every lane's sum is moved to its
// place before the end of the object, and the sums of all lanes, warps and spans are added by
// exclusive or. Leading zeros change nothing, so a row that begins before its span is filled with
// them.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef KVSTORE_AT
#define KVSTORE_AT(address, bytes) (address)  // a simulated GPU has its memory elsewhere
#endif

#define KVSTORE_THREADS 128  // of a block: one per entry of the tables
#define KVSTORE_LANES 32
#define KVSTORE_ROW_BYTES 512
#define KVSTORE_MOST_BUFFERS 448  // the parameters of a kernel have 4 KiB

// All in reflected form: bit 31 is the coefficient of x^0.
#define KVSTORE_POLYNOMIAL 0x82f63b78u
#define KVSTORE_ONE 0x80000000u

// x^(2^i) mod P. The order of x is 2^31 - 1, so exponents have 31 bits.
__constant__ const u32 kvstore_powers[31] = {
    0x40000000, 0x20000000, 0x08000000, 0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18,
    0x510ac59a, 0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62,
    0x28461564, 0xbf455269, 0xe2ea32dc, 0xfe7740e6, 0xf946610b, 0x3c204f8f, 0x538586e3, 0x59726915,
    0x734d5309, 0xbc1ac763, 0x7d0722cc, 0xd289cabe, 0xe94ca9bc, 0x05b74f3f, 0xa51e1f42};

// What a warp sums: bytes in GPU memory, and the exponent of x for what lies behind them in their
// object: 8 * bytes mod 2^31 - 1.
struct KvstoreSpan {
    u64 data;
    u32 bytes;
    u32 behind;
};

// Whole pages between a pool and their blocks. An object is the pieces of all buffers in order; of a
// buffer those of all layers, of a layer those of all tokens. Its memory has the tokens outside.
struct KvstorePages {
    u64 blocks;       // u64[pages]: addresses of the objects
    u64 page_ids;     // u64[pages]
    u64 sums;         // u32[pages * spans]
    u64 page_stride;  // bytes between pages in a buffer
    u32 page_bytes;   // of an object
    u32 piece_bytes;
    u32 layers;  // of one buffer, or 1 when a piece has all of them
    u32 tokens;  // the same
    u32 pages;
    u32 spans;  // of a page
    u32 span_bytes;
    u32 to_pool;  // else from it
    u64 buffers[KVSTORE_MOST_BUFFERS];
};

struct KvstoreTables {
    // What becomes of four bits of a sum, each at the address of its lane's own bank.
    u32 row[KVSTORE_THREADS * KVSTORE_LANES];  // moved on by a row
    u32 word[KVSTORE_THREADS];                 // moved on by 4 bytes; for all lanes
    u32 lane[KVSTORE_LANES];                   // the factor from a lane's bytes to the row's end
};

__device__ u32 kvstore_multiply(u32 a, u32 b) {
    u32 product = 0;
#pragma unroll 8
    for (u32 bit = 0; bit < 32; ++bit) {
        product ^= (b >> 31) != 0 ? a : 0;
        b <<= 1;
        a = (a >> 1) ^ ((a & 1) != 0 ? KVSTORE_POLYNOMIAL : 0);
    }
    return product;
}

// All threads of a block together.
__device__ void kvstore_make_tables(KvstoreTables* tables) {
    const u32 thread = threadIdx.x;
    const u32 bits = (thread % 16) << (4 * (thread / 16));
    const u32 moved = kvstore_multiply(bits, kvstore_powers[12]);
    for (u32 i = 0; i < KVSTORE_LANES; ++i) {
        tables->row[thread * KVSTORE_LANES + (thread + i) % KVSTORE_LANES] = moved;
    }
    tables->word[thread] = kvstore_multiply(bits, kvstore_powers[5]);
    if (thread < KVSTORE_LANES) {
        u32 factor = KVSTORE_ONE;
        for (u32 bit = 0; bit < 5; ++bit) {
            if (((KVSTORE_LANES - 1 - thread) >> bit & 1) != 0) {
                factor = kvstore_multiply(factor, kvstore_powers[7 + bit]);
            }
        }
        tables->lane[thread] = factor;
    }
    __syncthreads();
}

struct KvstoreSum {
    u32 word[4];
};

__device__ u32 kvstore_move_row(const KvstoreTables& tables, u32 sum, u32 lane) {
    u32 moved = 0;
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        moved ^= tables.row[(i * 16 + (sum >> (4 * i) & 15)) * KVSTORE_LANES + lane];
    }
    return moved;
}

__device__ void kvstore_add(const KvstoreTables& tables, KvstoreSum* sum, uint4 next, u32 lane) {
    sum->word[0] = kvstore_move_row(tables, sum->word[0], lane) ^ next.x;
    sum->word[1] = kvstore_move_row(tables, sum->word[1], lane) ^ next.y;
    sum->word[2] = kvstore_move_row(tables, sum->word[2], lane) ^ next.z;
    sum->word[3] = kvstore_move_row(tables, sum->word[3], lane) ^ next.w;
}

// The sum of all lanes, in each of them.
__device__ u32 kvstore_fold(const KvstoreTables& tables, const KvstoreSum& sum, u32 lane) {
    u32 crc = 0;
    for (u32 i = 0; i < 4; ++i) {
        const u32 before = crc ^ sum.word[i];
        crc = 0;
        for (u32 k = 0; k < 8; ++k) {
            crc ^= tables.word[k * 16 + (before >> (4 * k) & 15)];
        }
    }
    crc = kvstore_multiply(crc, tables.lane[lane]);
    for (u32 step = KVSTORE_LANES / 2; step > 0; step /= 2) {
        crc ^= __shfl_xor_sync(0xffffffffu, crc, step);
    }
    return crc;
}

// Moved on by an exponent of x, of which each lane takes one bit.
__device__ u32 kvstore_move(u32 crc, u32 exponent, u32 lane) {
    u32 factor = lane < 31 && (exponent >> lane & 1) != 0 ? kvstore_powers[lane] : KVSTORE_ONE;
    for (u32 step = KVSTORE_LANES / 2; step > 0; step /= 2) {
        factor = kvstore_multiply(factor, __shfl_xor_sync(0xffffffffu, factor, step));
    }
    return kvstore_multiply(crc, factor);
}

__device__ uint4 kvstore_load(u64 address) {
    return *reinterpret_cast<const uint4*>(KVSTORE_AT(address, 16));
}

__device__ u32 kvstore_load_byte(u64 address) {
    return *reinterpret_cast<const unsigned char*>(KVSTORE_AT(address, 1));
}

// The 16 bytes at `address` that do not lie before `begin`; zeros in place of the others.
__device__ uint4 kvstore_load_from(u64 address, u64 begin) {
    if (address >= begin) {
        return kvstore_load(address);
    }
    u32 words[4] = {0, 0, 0, 0};
    if (address + 16 > begin) {
        for (u32 i = static_cast<u32>(begin - address); i < 16; ++i) {
            words[i / 4] |= kvstore_load_byte(address + i) << (8 * (i % 4));
        }
    }
    uint4 vector;
    vector.x = words[0];
    vector.y = words[1];
    vector.z = words[2];
    vector.w = words[3];
    return vector;
}

extern "C" __global__ void __launch_bounds__(KVSTORE_THREADS)
    kvstore_checksum(u64 spans, u64 sums, u32 count) {
    __shared__ KvstoreTables tables;
    kvstore_make_tables(&tables);
    const u32 lane = threadIdx.x % KVSTORE_LANES;
    const u32 at = blockIdx.x * (KVSTORE_THREADS / KVSTORE_LANES) + threadIdx.x / KVSTORE_LANES;
    if (at >= count) {
        return;
    }
    const KvstoreSpan span = *reinterpret_cast<const KvstoreSpan*>(
        KVSTORE_AT(spans + at * sizeof(KvstoreSpan), sizeof(KvstoreSpan)));
    // Rows end where the last 16 aligned bytes do; what is behind them comes byte by byte.
    const u64 end = span.data + span.bytes;
    u64 rows_end = end / 16 * 16;
    KvstoreSum sum = {{0, 0, 0, 0}};
    if (rows_end > span.data) {
        const u64 first = span.data / 16 * 16;
        const u32 rows =
            static_cast<u32>((rows_end - first + KVSTORE_ROW_BYTES - 1) / KVSTORE_ROW_BYTES);
        u64 address = rows_end - static_cast<u64>(rows) * KVSTORE_ROW_BYTES + lane * 16;
        kvstore_add(tables, &sum, kvstore_load_from(address, span.data), lane);
#pragma unroll 4
        for (u32 row = 1; row < rows; ++row) {
            address += KVSTORE_ROW_BYTES;
            kvstore_add(tables, &sum, kvstore_load(address), lane);
        }
    } else {
        rows_end = span.data;
    }
    u32 crc = kvstore_fold(tables, sum, lane);
    for (u64 address = rows_end; address < end; ++address) {
        crc ^= kvstore_load_byte(address);
        for (u32 bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? KVSTORE_POLYNOMIAL : 0);
        }
    }
    crc = kvstore_move(crc, span.behind, lane);
    if (lane == 0) {
        *reinterpret_cast<u32*>(KVSTORE_AT(sums + at * sizeof(u32), sizeof(u32))) = crc;
    }
}

// Where the byte at `offset` of a page's object lies in the pool.
__device__ u64 kvstore_place(const KvstorePages& job, u64 page_at, u32 offset) {
    const u32 piece = offset / job.piece_bytes;
    const u32 of_buffer = job.layers * job.tokens;
    const u32 inner = piece % of_buffer;
    const u32 in_memory = inner % job.tokens * job.layers + inner / job.tokens;
    return job.buffers[piece / of_buffer] + page_at +
           static_cast<u64>(in_memory) * job.piece_bytes + offset % job.piece_bytes;
}

__device__ uint4 kvstore_move_vector(const KvstorePages& job, u64 block, u64 page_at, u32 offset) {
    const u64 in_pool = kvstore_place(job, page_at, offset);
    const u64 from = job.to_pool != 0 ? block + offset : in_pool;
    const u64 to = job.to_pool != 0 ? in_pool : block + offset;
    const uint4 vector = kvstore_load(from);
    *reinterpret_cast<uint4*>(KVSTORE_AT(to, 16)) = vector;
    return vector;
}

// Moves and sums in one pass, so that what is summed is what is stored.
extern "C" __global__ void __launch_bounds__(KVSTORE_THREADS)
    kvstore_pages(const __grid_constant__ KvstorePages job) {
    __shared__ KvstoreTables tables;
    kvstore_make_tables(&tables);
    const u32 lane = threadIdx.x % KVSTORE_LANES;
    const u32 at = blockIdx.x * (KVSTORE_THREADS / KVSTORE_LANES) + threadIdx.x / KVSTORE_LANES;
    const u32 page = at / job.spans;
    if (page >= job.pages) {
        return;
    }
    const u64 block = *reinterpret_cast<const u64*>(KVSTORE_AT(job.blocks + page * 8, 8));
    const u64 page_id = *reinterpret_cast<const u64*>(KVSTORE_AT(job.page_ids + page * 8, 8));
    const u64 page_at = page_id * job.page_stride;
    const u32 begin = at % job.spans * job.span_bytes;
    const u32 left = job.page_bytes - begin;
    const u32 bytes = left < job.span_bytes ? left : job.span_bytes;
    const u32 rows = (bytes + KVSTORE_ROW_BYTES - 1) / KVSTORE_ROW_BYTES;
    const u32 missing = rows * KVSTORE_ROW_BYTES - bytes;  // of the first row
    KvstoreSum sum = {{0, 0, 0, 0}};
    if (lane * 16 >= missing) {
        const uint4 vector =
            kvstore_move_vector(job, block, page_at, begin + lane * 16 - missing);
        sum.word[0] = vector.x;
        sum.word[1] = vector.y;
        sum.word[2] = vector.z;
        sum.word[3] = vector.w;
    }
#pragma unroll 4
    for (u32 row = 1; row < rows; ++row) {
        const u32 offset = begin + row * KVSTORE_ROW_BYTES + lane * 16 - missing;
        kvstore_add(tables, &sum, kvstore_move_vector(job, block, page_at, offset), lane);
    }
    const u64 behind = 8 * static_cast<u64>(left - bytes) % 0x7fffffff;
    const u32 crc =
        kvstore_move(kvstore_fold(tables, sum, lane), static_cast<u32>(behind), lane);
    if (lane == 0) {
        *reinterpret_cast<u32*>(KVSTORE_AT(job.sums + at * sizeof(u32), sizeof(u32))) = crc;
    }
}
