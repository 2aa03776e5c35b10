// libstdc++ 11 and later ask glibc 2.32's __libc_single_threaded whether the process has one thread. A definition of our
// own that says "no", which is always safe, lets the libraries load on older systems too (manylinux_2_28).
extern "C" [[gnu::visibility("hidden")]] char __libc_single_threaded;
char __libc_single_threaded = 0;
