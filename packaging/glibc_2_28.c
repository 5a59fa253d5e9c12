/* What GCC 12's libstdc++ takes from glibc 2.30 to 2.36, for systems with glibc 2.28. packaging/manylinux.cmake links
 * this into each program and shared library; the names stay inside. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

/* glibc 2.32: whether reference counts may do without atomic instructions. They never do. */
char __libc_single_threaded = 0;

/* glibc 2.30. As libstdc++ does for older systems: the time that is left, from now on the system's clock. */
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const struct timespec* until) {
  struct timespec there, here;
  if (clock_gettime(clock, &there) != 0 || clock_gettime(CLOCK_REALTIME, &here) != 0) abort();
  const int64_t second = 1000000000;
  const int64_t nanoseconds = here.tv_nsec + until->tv_nsec - there.tv_nsec + 2 * second; /* positive */
  const struct timespec end = {.tv_sec = here.tv_sec + until->tv_sec - there.tv_sec - 2 + nanoseconds / second,
                               .tv_nsec = nanoseconds % second};
  return pthread_cond_timedwait(condition, mutex, &end);
}

/* glibc 2.36: std::random_device. */
uint32_t arc4random(void) {
  uint32_t number;
  if (getrandom(&number, sizeof number, 0) != sizeof number) abort();
  return number;
}
