// The language of the kernels, on a CPU. The threads of a threadgroup take turns, each running up to a barrier; with
// REAL_THREADS they run in parallel, as the sanitizers require.
#ifdef __APPLE__
#define _XOPEN_SOURCE 700
#endif
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#ifdef REAL_THREADS
#include <thread>
#include <vector>
#endif
template <typename T> static T max(T a, T b) { return a < b ? b : a; }
template <typename T> static T min(T a, T b) { return b < a ? b : a; }
struct alignas(16) float4 { float x, y, z, w; };
static float rsqrt(float x) { return 1 / sqrtf(x); }
#define exp expf
#define log logf
#define fma fmaf
#define fabs fabsf

static void** emulated_arguments;

#ifdef REAL_THREADS
typedef pthread_barrier_t Barrier;
static thread_local int emulated_rank, emulated_group;
static Barrier gate, warp_gates[32];
static void wait_for(Barrier* barrier) { pthread_barrier_wait(barrier); }
static void emulate(void (*body)(), int threads, int groups) {
  pthread_barrier_init(&gate, nullptr, threads);
  for (int warp = 0; warp < threads / 32; ++warp) pthread_barrier_init(warp_gates + warp, nullptr, 32);
  for (int group = 0; group < groups; ++group) {
    std::vector<std::thread> running;
    for (int rank = 0; rank < threads; ++rank)
      running.emplace_back([=] { emulated_rank = rank, emulated_group = group; body(); });
    for (auto& thread : running) thread.join();
  }
}
#else
struct Barrier { int count, waiting, round; };
static const int STACK = 1 << 16;
static int emulated_rank, emulated_group, at_work;
static Barrier gate, warp_gates[32];
static ucontext_t outside, starts[1024];
static jmp_buf places[1024];  // where each thread continues; longjmp is much faster than switching contexts
static bool begun[1024], ended[1024];
static void (*emulated_body)();
static bool pass_on() {  // switch to the next unfinished thread; return whether there is one
  const int from = emulated_rank;
  do emulated_rank = (emulated_rank + 1) % at_work;
  while (ended[emulated_rank] && emulated_rank != from);
  if (emulated_rank == from) return false;
  if (_setjmp(places[from])) return true;
  if (begun[emulated_rank]) _longjmp(places[emulated_rank], 1);
  begun[emulated_rank] = true;
  setcontext(starts + emulated_rank);
  return true;
}
static void wait_for(Barrier* barrier) {
  const int round = barrier->round;
  if (++barrier->waiting == barrier->count) barrier->waiting = 0, ++barrier->round;
  while (barrier->round == round)
    if (!pass_on()) abort();  // the other threads have ended without reaching this barrier
}
static void take_turns() {
  emulated_body();
  ended[emulated_rank] = true;
  if (!pass_on()) setcontext(&outside);
}
static void emulate(void (*body)(), int threads, int groups) {
  char* stacks = (char*)malloc(size_t(threads) * STACK);
  emulated_body = body, at_work = threads;
  for (emulated_group = 0; emulated_group < groups; ++emulated_group) {
    gate = {threads, 0, 0};
    for (int warp = 0; warp < threads / 32; ++warp) warp_gates[warp] = {32, 0, 0};
    for (int rank = 0; rank < threads; ++rank) {
      getcontext(starts + rank);
      starts[rank].uc_stack.ss_sp = stacks + size_t(rank) * STACK;
      starts[rank].uc_stack.ss_size = STACK;
      makecontext(starts + rank, take_turns, 0);
      begun[rank] = rank == 0, ended[rank] = false;
    }
    emulated_rank = 0;
    swapcontext(&outside, starts);
  }
  free(stacks);
}
#endif

static float slots[1024];
static float shuffle_xor(float value, int mask) {
  Barrier* warp_gate = warp_gates + emulated_rank / 32;
  slots[emulated_rank] = value;
  wait_for(warp_gate);
  const float other = slots[emulated_rank ^ mask];
  wait_for(warp_gate);
  return other;
}
#define GLOBAL
#define LOCAL
#define SHARED
#define SHARED_ARRAY static
#define CONSTANT constexpr
#define INLINE inline
#define UNROLL
#define UNROLL_BY(count)
#define BARRIER() wait_for(&gate)
#define SHUFFLE_XOR(value, mask) shuffle_xor(value, mask)
#define STORE_4(to, value) *(float4*)(to) = value

struct Matrix { float x[8][8]; };  // each thread of a warp has all numbers and stores two of them
#define MATRIX Matrix
#define NO_MATRIX Matrix()
#define MATRIX_LOAD(to, from, pitch) for (int e = 0; e < 64; ++e) (to).x[e / 8][e % 8] = (from)[e / 8 * (pitch) + e % 8]
#define MATRIX_STORE(from, to, pitch) \
  for (int e = emulated_rank % 32; e < 64; e += 32) (to)[e / 8 * (pitch) + e % 8] = (from).x[e / 8][e % 8]
#define MATRIX_ADD_PRODUCT(sum, a, b) add_product(sum, a, b)
#define WARP_BARRIER() wait_for(warp_gates + emulated_rank / 32)
static void add_product(Matrix& sum, const Matrix& a, const Matrix& b) {
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 8; ++j) sum.x[i][j] = fma(a.x[i][k], b.x[k][j], sum.x[i][j]);
}
