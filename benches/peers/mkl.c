/* Preloaded, it makes MKL take an AMD processor for what it checks for, and use the same kernels
 * there. */
int mkl_serv_intel_cpu_true(void)
{
    return 1;
}
