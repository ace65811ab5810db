/* What a convolution's kernel sees of a picture at each place, as a matrix. */
#include "platform.h"

typedef struct {
    const number *x; /* (channels, height, width) */
    number *y;       /* (lines, pixels) */
    int height, width;
    int kernel, stride;
    int before;      /* zeros left of and above the picture */
    int first_row;   /* of the convolved picture */
    int row_length;  /* likewise */
    int pixels;      /* that are convolved: whole rows */
    int seen;        /* channels * kernel * kernel: the lines that hold the picture */
    int tile, tiles; /* pixels of a block; blocks of a line */
} unfolding;

INSIDE number seen_at(const unfolding *call, int line, int pixel) {
    int within = call->kernel * call->kernel;
    int channel = line / within, place = line % within;
    int row = call->first_row + pixel / call->row_length, column = pixel % call->row_length;
    int y = row * call->stride + place / call->kernel - call->before;
    int x = column * call->stride + place % call->kernel - call->before;
    if (y < 0 || y >= call->height || x < 0 || x >= call->width) return narrow(0.0f);
    const number *from = call->x + ((long long)channel * call->height + y) * call->width + x;
    READS(from);
    return *from;
}

/* One block for each tile of a line. The line behind what is seen holds ones, which a
 * bias is multiplied by; the lines behind that, zeros. */
KERNEL(unfold, unfolding) {
    int line = (int)(BLOCK / call.tiles), first = (int)(BLOCK % call.tiles) * call.tile;
    int end = call.pixels - first < call.tile ? call.pixels : first + call.tile;
    number *y = call.y + (long long)line * call.pixels;
    for (int pixel = first + THREAD; pixel < end; pixel += THREADS) {
        number seen = line < call.seen ? seen_at(&call, line, pixel) : narrow(line == call.seen ? 1.0f : 0.0f);
        WRITES(y + pixel);
        y[pixel] = seen;
    }
}
